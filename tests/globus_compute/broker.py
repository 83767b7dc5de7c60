"""The service's side of the message broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel

__all__ = ["Broker"]

CALL_S = 10.0
HOUR_MS = 3_600_000


class Broker:
    """One connection, used by one thread; other threads have it do things."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._thread.join(CALL_S)

    def consume(self, name: str, heard: Callable[[bytes], None]) -> None:
        """An exchange and a queue of this name, which endpoints publish to. Before the start."""
        self._channel.exchange_declare(name, "topic")
        self._channel.queue_declare(name)
        self._channel.queue_bind(name, name, "#")
        self._channel.basic_consume(name, lambda channel, method, properties, body: heard(body), auto_ack=True)

    def make_queue(self, name: str) -> None:
        self._do(lambda channel: channel.queue_declare(name, durable=True, arguments={"x-expires": HOUR_MS}))

    def publish(self, queue: str, body: bytes, **properties: Any) -> None:
        described = pika.BasicProperties(delivery_mode=2, timestamp=int(time.time()), **properties)
        self._do(lambda channel: channel.basic_publish("", queue, body, described))

    def _run(self) -> None:
        while not self._stopped:
            self._connection.process_data_events(0.1)
        self._connection.close()

    def _do(self, action: Callable[[BlockingChannel], Any]) -> None:
        if threading.current_thread() is self._thread:
            action(self._channel)
            return
        done: Future[Any] = Future()

        def perform() -> None:
            try:
                done.set_result(action(self._channel))
            except Exception as error:  # noqa: BLE001 - it is raised in the thread that waits
                done.set_exception(error)

        self._connection.add_callback_threadsafe(perform)
        done.result(CALL_S)
