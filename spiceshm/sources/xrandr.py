"""The size of an X screen: another mode for its one output, through RandR.

Only a screen that nobody sits at is changed: an output with an EDID, the description that monitors
give of themselves, is a real one, and viewers do not rearrange somebody's desk.

An X server that has the mode of its size only (Xvfb) could cut that down but never go beyond it.
That is not done either: without a window manager the windows stay where they are, outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from .xcb import Lacking, XConnection, XError

if TYPE_CHECKING:
    from .xcb import Xcb

_NAME = "spiceshm-{}x{}"
_NAME_START = b"spiceshm-"
_SUCCESS = 0
_UNROTATED = 1
_HZ = 60
_MOST_CLOCK = 0xFFFFFFFF


class XRandr(XConnection):
    """The outputs of one X screen. Made by `open`; raises Lacking if there is no RandR 1.3."""

    def __init__(self, xcb: Xcb, connection: Any, screen: Any, name: str) -> None:
        super().__init__(xcb, connection, screen, name)
        self._randr: Any

    def _start(self) -> None:
        self._randr, _ = self._need(self._xcb.randr.key)
        version = self._randr.QueryVersion(1, 3).reply()
        if (version.major_version, version.minor_version) < (1, 3):
            raise Lacking(f"X display {self._name} has no RANDR 1.3")

    async def resize(self, width: int, height: int) -> None:
        """Give the screen this size in pixels; returns when the X server has done so.

        Raises XError where there is not exactly one output in use, where that belongs to a real
        screen or has one size only, where the X server has no room for the size, or is gone. The
        screen then stays as it was.
        """
        await trio.to_thread.run_sync(self._resize, width, height, abandon_on_cancel=True)

    def _resize(self, width: int, height: int) -> None:
        xcffib = self._xcb.xcffib
        try:
            with self._using():
                # Nobody sees the sizes in between, nor changes something meanwhile.
                self._connection.core.GrabServer()
                try:
                    self._set(width, height)
                finally:
                    self._connection.core.UngrabServer()
                    self._connection.core.GetInputFocus().reply()  # all of it has been done
        except xcffib.ConnectionException:
            raise self._lost() from None
        except xcffib.XcffibException as error:
            what = type(error).__name__
            raise XError(f"X display {self._name} refused {width}x{height}: {what}") from error

    def _set(self, width: int, height: int) -> None:
        core, randr = self._connection.core, self._randr
        resources = randr.GetScreenResourcesCurrent(self._root).reply()
        output, info = self._only_output(resources)
        modes = {mode.id: mode for mode in resources.modes}
        if len(info.modes) == 1 and not modes[info.modes[0]].dot_clock:
            raise self._cannot("has one size only")
        limits = randr.GetScreenSizeRange(self._root).reply()
        most = (limits.max_width, limits.max_height)
        least = (limits.min_width, limits.min_height)
        if not (least[0] <= width <= most[0] and least[1] <= height <= most[1]):
            raise self._cannot("can be {}x{} to {}x{} pixels".format(*least, *most))
        geometry = core.GetGeometry(self._root).reply()
        old = (geometry.width, geometry.height)
        fitting = [m for m in info.modes if (modes[m].width, modes[m].height) == (width, height)]
        # While the output changes, the screen has room for what it was and for what it will be.
        both = (max(old[0], width), max(old[1], height))
        try:
            mode = fitting[0] if fitting else self._new_mode(output, width, height)
            if both != old:
                self._set_screen(*both)
            self._set_output(info.crtc, resources, mode, output)
        except BaseException:
            if both != old:
                self._set_screen(*old)
            raise
        finally:
            self._drop_modes(output)
        if both != (width, height):
            self._set_screen(width, height)

    def _cannot(self, why: str) -> XError:
        return XError(f"X display {self._name} {why}")

    def _only_output(self, resources: Any) -> tuple[int, Any]:
        """The one output in use, and what the server says of it."""
        asked = [
            (output, self._randr.GetOutputInfo(output, resources.config_timestamp))
            for output in resources.outputs
        ]
        infos = [(output, cookie.reply()) for output, cookie in asked]
        used = [(output, info) for output, info in infos if info.crtc]
        if len(used) != 1:
            raise self._cannot(f"has {len(used)} outputs in use, not one")
        output, info = used[0]
        if self._is_real(output):
            raise self._cannot(f"is on a real screen ({_text(info.name)}), which is not changed")
        return output, info

    def _is_real(self, output: int) -> bool:
        atom = self._connection.core.InternAtom(True, len("EDID"), "EDID").reply().atom
        if not atom:
            return False
        names = self._randr.ListOutputProperties(output).reply().atoms
        if atom not in list(names):
            return False
        edid = self._randr.GetOutputProperty(output, atom, 0, 0, 1, False, False).reply()
        return bool(edid.num_items)

    def _new_mode(self, output: int, width: int, height: int) -> int:
        """Add a mode of this size to what the output can do; `_drop_modes` takes it away."""
        name = _NAME.format(width, height)
        clock = min(width * height * _HZ, _MOST_CLOCK)
        across, down = (width, width, width, 0), (height, height, height)
        description = self._xcb.randr.ModeInfo.synthetic(
            0, width, height, clock, *across, *down, len(name), 0
        )
        mode: int = self._randr.CreateMode(self._root, description, len(name), name).reply().mode
        self._randr.AddOutputMode(output, mode, is_checked=True).check()
        return mode

    def _drop_modes(self, output: int) -> None:
        """Take away the modes that we made and that nothing uses any more."""
        resources = self._randr.GetScreenResourcesCurrent(self._root).reply()
        used = {
            self._randr.GetCrtcInfo(crtc, resources.config_timestamp).reply().mode
            for crtc in resources.crtcs
        }
        names = bytes(resources.names)
        for mode in resources.modes:
            name, names = names[: mode.name_len], names[mode.name_len :]
            if name.startswith(_NAME_START) and mode.id not in used:
                # Either may be gone: it was never added, or another output has it still.
                self._randr.DeleteOutputMode(output, mode.id)
                self._randr.DestroyMode(mode.id)

    def _set_screen(self, width: int, height: int) -> None:
        mm = [max(1, side * 254 // 960) for side in (width, height)]  # 96 pixels an inch
        self._randr.SetScreenSize(self._root, width, height, *mm, is_checked=True).check()

    def _set_output(self, crtc: int, resources: Any, mode: int, output: int) -> None:
        cookie = self._randr.SetCrtcConfig(
            crtc, 0, resources.config_timestamp, 0, 0, mode, _UNROTATED, 1, [output]
        )
        status = cookie.reply().status
        if status != _SUCCESS:
            raise self._cannot(f"did not take the mode (RandR status {status})")


def _text(name: Any) -> str:
    return bytes(name).decode(errors="replace")
