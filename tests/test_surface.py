"""A surface while things happen to it: memory that comes and goes, modes that change, frames that
are being drawn meanwhile, descriptors that run out."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

import spiceshm
from spiceshm.client.display import DisplayChannel
from spiceshm.memory import Segment
from tests.test_library import (
    HEIGHT,
    WIDTH,
    accepted,
    asked_again,
    both_ends,
    next_frame,
    picture,
    rgb,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/display.sock"


async def look(remote: spiceshm.RemoteDisplay) -> None:
    async for _ in remote.frames():
        pass


def none_left(segment: Segment) -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


# What a producer does


async def test_a_list_of_damage_is_the_producers_to_use_again(address: str) -> None:
    async with both_ends(address) as (_, surface, remote):
        await until(remote, picture(0))
        truth = picture(0)
        rects: list[tuple[int, int, int, int]] = []
        for step in range(1, 8):
            top = 10 * step
            rects.append((top, 0, top + 5, 50))
            drawing = surface.frame(rects)
            drawing.pixels[top : top + 5, 0:50] = step
            truth[top : top + 5, 0:50] = step
            drawing.publish(rects)
            rects.clear()
            frame = await next_frame(remote)
            assert np.array_equal(rgb(frame.pixels), rgb(truth)), step


async def test_damage_told_at_the_end_is_checked_and_merged(address: str) -> None:
    async with both_ends(address) as (_, surface, remote):
        await until(remote, picture(0))
        drawing = surface.frame("all")
        drawing.pixels[:] = 9
        with pytest.raises(ValueError, match="outside a surface"):
            drawing.publish([(0, 0, HEIGHT + 1, 1)])
        drawing.publish(
            [(2 * i, 2 * j, 2 * i + 1, 2 * j + 1) for i in range(10) for j in range(10)]
        )
        frame = await next_frame(remote)
        assert len(frame.rects) <= 64
        assert (frame.pixels[:, :, :3] == 9).all()


@pytest.mark.parametrize(
    "heads", [[], [(0, 0, 0, 1)], [(0, 0, HEIGHT + 1, 1)], [(0, 0, 1, 1)] * 257]
)
async def test_monitors_that_a_surface_cannot_have(address: str, heads: list[Any]) -> None:
    async with both_ends(address) as (_, surface, remote):
        with pytest.raises(ValueError, match=r"heads|outside"):
            surface.set_heads(heads)
        assert remote._channel.heads == [(0, 0, HEIGHT, WIDTH)]


async def test_memory_of_a_surface_that_is_replaced_while_it_is_drawn(address: str) -> None:
    async with spiceshm.serve(address) as display:
        display.create_surface(64, 64).draw(np.zeros((64, 64, 4), np.uint8))
        before = display.shm_bytes
        for _ in range(5):
            assert display.surface is not None
            with display.surface.frame() as drawing:
                drawing.pixels[:] = 1
                display.create_surface(64, 64)
        assert display.shm_bytes == before


async def test_a_client_comes_while_a_frame_is_drawn_and_memory_is_replaced(address: str) -> None:
    async with both_ends(address) as (_, surface, remote):
        await until(remote, picture(0))
        drawing = surface.frame("all")
        await surface.forget()
        await see_another(address, drawing)


async def test_a_client_comes_while_a_frame_is_drawn_and_memory_is_given_back(address: str) -> None:
    async with both_ends(address) as (display, surface, remote):
        await until(remote, picture(0))
        async with spiceshm.connect(address, credits=8):
            await asked_again(lambda: accepted(surface))
            for step in range(20):  # until the picture lies in memory that will be given back
                assert surface.pool.current is not None
                if surface.pool.current.segment is not surface.pool.segments[0]:
                    break
                surface.draw(picture(step))
            drawing = surface.frame("all")
        await asked_again(lambda: len(display.viewers) == 1)
        await see_another(address, drawing)


async def see_another(address: str, drawing: spiceshm.Drawing) -> None:
    async def publish() -> None:
        await trio.sleep(0.1)
        drawing.publish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        with trio.fail_after(10):
            async with spiceshm.connect(address) as other:
                assert other.shared


# Lock step


async def test_consumed_after_memory_was_replaced(address: str) -> None:
    async with both_ends(address) as (_, surface, remote):
        await until(remote, picture(0))
        await surface.forget()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, remote)
            with trio.fail_after(10):
                await surface.consumed(surface.serial)
            nursery.cancel_scope.cancel()


async def test_consumed_when_another_client_leaves(address: str) -> None:
    async with both_ends(address) as (display, surface, remote), trio.open_nursery() as nursery:
        nursery.start_soon(look, remote)
        for _ in range(3):
            async with spiceshm.connect(address, credits=8):
                await asked_again(lambda: accepted(surface))
                for step in range(20):
                    surface.draw(picture(step))
                    assert surface.pool.current is not None
                    if surface.pool.current.segment is not surface.pool.segments[0]:
                        break
            pool = surface.pool
            await asked_again(lambda: len(display.viewers) == 1 == len(pool.segments))  # noqa: B023
            with trio.fail_after(10):
                await surface.consumed(surface.serial)
        nursery.cancel_scope.cancel()


# Where something is refused


async def test_the_budget_of_forgetting_that_was_cancelled(address: str) -> None:
    async with spiceshm.serve(address) as display:
        surface = display.create_surface(64, 64)
        before = display.shm_bytes
        for _ in range(3):
            with trio.move_on_after(0):
                await surface.forget()
        await asked_again(lambda: display.shm_bytes == before)


@pytest.mark.parametrize("what", ["memory", "mode"])
async def test_a_moment_without_descriptors_is_not_the_end_of_waiting(
    address: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with both_ends(address) as (display, surface, remote), trio.open_nursery() as nursery:
        await until(remote, picture(0))
        nursery.start_soon(look, remote)
        duplicate = Segment.duplicate
        monkeypatch.setattr(Segment, "duplicate", none_left)
        if what == "mode":
            surface = display.create_surface(WIDTH, HEIGHT)
        else:
            await surface.forget()
        monkeypatch.setattr(Segment, "duplicate", duplicate)
        with trio.fail_after(10):
            await surface.wanted()
        nursery.cancel_scope.cancel()


async def test_no_descriptor_for_the_second_piece_of_a_new_surface(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first offer is answered late, when there is more memory that cannot be offered."""
    async with both_ends(address) as (display, _, remote):
        await until(remote, picture(0))
        answer, duplicate = DisplayChannel._answer, Segment.duplicate
        held: list[tuple[DisplayChannel, Any]] = []
        monkeypatch.setattr(
            DisplayChannel, "_answer", lambda display, offer: held.append((display, offer))
        )
        surface = display.create_surface(WIDTH, HEIGHT)
        await asked_again(lambda: bool(held))
        surface.join(8)  # somebody else's, for whom it grows
        await asked_again(lambda: len(surface.pool.segments) > 1)
        refused: list[Segment] = []

        def refuse(segment: Segment) -> Any:
            refused.append(segment)
            return none_left(segment)

        monkeypatch.setattr(Segment, "duplicate", refuse)
        monkeypatch.setattr(DisplayChannel, "_answer", answer)
        for who, offer in held:
            answer(who, offer)
            who._flush()
        await asked_again(lambda: bool(refused))
        monkeypatch.setattr(Segment, "duplicate", duplicate)
        surface.draw(picture(5))
        await until(remote, picture(5))


async def test_forgetting_while_an_offer_is_open(address: str) -> None:
    async with both_ends(address) as (display, surface, remote):
        await until(remote, picture(0))
        await surface.forget()
        await surface.forget()
        surface.draw(picture(1))
        await until(remote, picture(1))
        surface.draw(picture(2))
        await until(remote, picture(2))
        assert remote.shared, display.viewers[0].stats.reason
