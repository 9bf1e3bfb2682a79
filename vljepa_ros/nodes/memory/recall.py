"""`recall` and `pin` of the memory node.

Invariant: every request gets a response: moments, or a sentence that says why there are none. The
executor's side checks and waits; the text is embedded by the perception node, the worker searches
the store, and a thread of its own asks the fleet's server, which may take its time.
"""

from __future__ import annotations

import logging
import os
import time

import numpy as np

from vljepa_ros.errors import VLJepaError, counted
from vljepa_ros.memory.fleet import FleetStore
from vljepa_ros.memory.store import Found, MomentStore
from vljepa_ros.perception.texts import checked_text, shown
from vljepa_ros.ros.lifecycle import ModelNode
from vljepa_ros.ros.worker import Worker
from vljepa_ros.srv import EmbedText, Pin
from vljepa_ros.srv import Recall as RecallSrv
from vljepa_ros.stamps import to_ns

from .messages import moment_message
from .store_state import StoreState

log = logging.getLogger(__name__)
EMBED_SECONDS = 5.0  # that the perception node may take to embed a text
DEFAULT, MOST = 5, 100  # moments in an answer
API_KEY = "QDRANT_API_KEY"  # environment variable; a parameter could be read by everybody


class RecallError(VLJepaError):
    """What was asked cannot be recalled."""


class Recall:
    """The services, for the node's life: one that is not configured says so."""

    def __init__(self, node: ModelNode, opened: StoreState) -> None:
        self._node = node
        self._open = opened
        self.count = 0  # of recalls that were answered
        self.latency = 0.0  # seconds, of the last one
        self._fleet: Worker | None = None
        self._server: FleetStore | None = None
        node.serve(RecallSrv, "recall", self._recall)
        node.serve(Pin, "pin", self._pin)
        self._embedder = node.create_client(
            EmbedText, "embed_text", callback_group=node.waiting_services
        )

    def open(self, server: str, collection: str) -> None:
        """The node is configured. `server`: the fleet's, or empty. StoreError: no qdrant-client."""
        bundle = self._open.bundle
        if server and bundle is not None:
            key = os.environ.get(API_KEY, "")
            self._server = FleetStore(
                server, bundle.model_id, bundle.embedding_dim, collection, key
            )
            self._fleet = Worker("fleet", lambda: False)

    def close(self) -> None:
        """The node is cleaned up."""
        if self._fleet is not None:
            self._fleet.close(0.0)  # it may wait for the server; its thread ends by itself
        self._fleet = self._server = None

    # -------------------------------------------------------------- recall

    async def _recall(
        self, request: RecallSrv.Request, response: RecallSrv.Response
    ) -> RecallSrv.Response:
        began = time.monotonic()
        try:
            found = await self._search(request)
        except VLJepaError as error:
            response.message = str(error)
            return response
        response.success = True
        response.moments = [moment_message(one.moment, one.score) for one in found]
        response.message = self._note(found)
        if self._open.bundle is not None:
            response.threshold = self._open.bundle.thresholds.watch
        self.count += 1
        self.latency = time.monotonic() - began
        return response

    async def _search(self, request: RecallSrv.Request) -> list[Found]:
        node = self._node
        store, bundle = self._open.store, self._open.bundle
        text = checked_text("text", request.text)
        after, before = max(0, to_ns(request.after)), max(0, to_ns(request.before))
        if before and after > before:
            raise RecallError("'before' is earlier than 'after'; nothing can lie between.")
        if store is None or bundle is None:
            raise RecallError(f"{node.get_fully_qualified_name()} is {node.state}; configure it.")
        cameras = tuple(dict.fromkeys(request.cameras))
        limit = min(request.limit or DEFAULT, MOST)
        if not request.fleet:
            self._check_cameras(cameras)
            embedding = await self._embed(text)
            return await node.in_worker(
                lambda: _found(store, embedding, cameras, (after, before), limit)
            )
        fleet, server = self._fleet, self._server
        if fleet is None or server is None:
            raise RecallError(
                "There is no fleet to ask: parameter 'server' of "
                f"{node.get_fully_qualified_name()} is empty; set it to the URL of a Qdrant server."
            )
        embedding = await self._embed(text)
        try:
            return await fleet.submit(
                lambda: server.search(embedding, cameras, after, before, limit), node.promise()
            )
        except RuntimeError as error:  # cleaned up meanwhile
            raise RecallError(str(error)) from None

    def _note(self, found: list[Found]) -> str:
        """What to make of what was found; empty: nothing is to be said of it."""
        bundle = self._open.bundle
        if not found:
            return "Nothing that fits has been stored yet."
        strange = [one for one in found if bundle and bundle.is_unfamiliar(one.moment.familiarity)]
        if not strange:
            return ""
        return (
            f"What {len(strange)} of {counted(len(found), 'moment')} show the model does not know, "
            "and the fit is chance: the familiarity is below the bundle's threshold."
        )

    def _check_cameras(self, cameras: tuple[str, ...]) -> None:
        known = sorted(self._open.cameras)
        for camera in cameras:
            if camera not in known:
                there = f"there are: {', '.join(known)}" if known else "none has been heard yet"
                raise RecallError(f"There is no camera '{shown(camera)}' in the memory; {there}.")

    async def _embed(self, text: str) -> np.ndarray:
        """The embedding of a text, float32 `[E]`, from the perception node."""
        name, bundle = self._node.resolve_service_name("embed_text"), self._open.bundle
        assert bundle is not None
        if not self._embedder.service_is_ready():
            raise RecallError(
                f"Recall needs the perception node to embed the text, and nobody serves '{name}'; "
                "start perception_node with the same bundle."
            )
        request = EmbedText.Request(texts=[text])
        embedded = await self._node.response(self._embedder, request, EMBED_SECONDS)
        if embedded is None:
            raise RecallError(
                f"The perception node did not answer on '{name}' within {EMBED_SECONDS:g} s; see "
                "whether it runs."
            )
        if not embedded.success:
            raise RecallError(f"The perception node refused: {embedded.message}")
        if embedded.model_id != bundle.model_id:
            raise RecallError(
                f"The perception node embeds with '{embedded.model_id}', and the memory is of "
                f"'{bundle.model_id}'; give both nodes the same bundle."
            )
        return np.array(embedded.embeddings, np.float32)

    # -------------------------------------------------------------- pin

    async def _pin(self, request: Pin.Request, response: Pin.Response) -> Pin.Response:
        node, store = self._node, self._open.store
        try:
            moment_id = checked_text("id", request.id)
            if store is None:
                raise RecallError(
                    f"{node.get_fully_qualified_name()} is {node.state}; configure it."
                )
            if not await node.in_worker(lambda: store.pin(moment_id, request.pinned)):
                raise RecallError(f"There is no moment '{shown(moment_id)}' in the memory.")
        except VLJepaError as error:
            response.message = str(error)
            return response
        response.success = True
        return response


def _found(
    store: MomentStore,
    embedding: np.ndarray,
    cameras: tuple[str, ...],
    bounds: tuple[int, int],
    limit: int,
) -> list[Found]:
    """What the store finds; RecallError also where its index breaks, which may raise anything."""
    try:
        return store.search(embedding, cameras, *bounds, limit)
    except VLJepaError:
        raise
    except Exception as error:
        log.exception("Searching failed.")
        raise RecallError(
            f"The store cannot be searched ({type(error).__name__}: {error}); start the memory "
            "node again, which makes its index anew where that is broken."
        ) from error
