"""``spiceshm-client`` on QEMU: what it prints, what it saves, and how it ends."""

from __future__ import annotations

import datetime
import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from PIL import Image

import spiceshm
from tests.interop.machine import PROMPT, free_port, machine
from tests.programs import DEADLINE, Program, command, look, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.peer("qemu-system-x86_64")

SECRET = ("-object", "secret,id=ticket,data=sesame")


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_it_types_waits_and_saves_what_the_machine_shows(tcp: bool, tmp_path: Path) -> None:
    ticket, picture = tmp_path / "ticket", tmp_path / "now.png"
    ticket.touch(0o600)
    ticket.write_text("sesame\n")
    with machine("-vga", "qxl", *SECRET, tcp=tcp, spice="password-secret=ticket") as it:
        until(lambda: it.text().endswith(PROMPT))
        to = ("--password-file", str(ticket), it.address)
        acted = look("--region", "0,0,720,16", "--type", "Hi!", "--wait-change", "9", "--json", *to)
        assert (acted.returncode, acted.stderr) == (0, b"")
        assert [action["ok"] for action in json.loads(acted.stdout)["actions"]] == [True, True]
        until(lambda: it.text().endswith(f"{PROMPT} Hi!"))
        with it.stopped():
            looked = look("--strict", "--screenshot", str(picture), "--json", *to)
            assert (looked.returncode, looked.stderr) == (0, b"")
            told = json.loads(looked.stdout)
            assert (told["shm"], told["stale"]) == (False, [])
            assert told["images"] == ({"lz4": 1} if tcp else {"raw": 1})
            assert np.array_equal(np.asarray(Image.open(picture)), it.dumped())

        ticket.write_text("mellon\n")
        refused = look("--type", "no", *to)
        assert (refused.returncode, refused.stdout) == (1, b"")
        assert refused.stderr.decode() == (
            f"spiceshm-client: {it.address}: permission denied: wrong or missing password "
            "(--password-file, SPICESHM_PASSWORD)\n"
        )


async def test_a_machine_that_is_killed() -> None:
    with machine("-vga", "std") as it:
        gone = rf"{it.address}: (the other end closed the connection|the connection broke: .*)"
        with Program(command("client", "--stats", it.address)) as program:
            until(lambda: "frames/s" in program.errors)
            it.qemu.process.kill()
            assert program.wait() == 5
            assert re.fullmatch(f"spiceshm-client: {gone}", program.errors.splitlines()[-1])
    with machine("-vga", "std") as it:
        gone = rf"{it.address}: (the other end closed the connection|the connection broke: .*)"
        async with spiceshm.connect(it.address) as remote:
            await remote.key("a")
            frames = remote.frames()
            await anext(frames)
            it.qemu.process.kill()
            with trio.fail_after(DEADLINE), pytest.raises(spiceshm.Disconnected, match=gone):
                _ = [_ async for _ in frames]
            with pytest.raises(spiceshm.Disconnected, match=gone):
                await remote.key("a")
            with pytest.raises(spiceshm.Disconnected, match=gone):
                await remote.latest()


def test_a_server_that_wants_tls(tmp_path: Path) -> None:
    """For some of its channels, or on a port that has nothing else."""
    certify(tmp_path)
    port = free_port()
    tls = f"tls-port={port},x509-dir={tmp_path},tls-channel=inputs,disable-ticketing=on"
    with machine("-vga", "std", tcp=True, spice=tls) as it:
        result = look(f"tcp:127.0.0.1:{port}")
        assert result.returncode == 5
        assert re.fullmatch(
            rf"spiceshm-client: tcp:127\.0\.0\.1:{port}: the .* before it said anything; a port "
            "for TLS, which is not spoken here, is like that\n",
            result.stderr.decode(),
        )
        assert look(it.address).returncode == 0
        result = look("--type", "a", it.address)
        assert result.returncode == 1
        assert result.stderr.decode() == (
            f"spiceshm-client: --type a: {it.address}: the server refused the connection: "
            "need secured (5); it wants TLS, which is not spoken here\n"
        )


def certify(place: Path) -> None:
    """Put the files there that QEMU's ``x509-dir`` has."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), serial_number=1)
    builder = builder.not_valid_before(datetime.datetime(2020, 1, 1))
    builder = builder.not_valid_after(datetime.datetime(2100, 1, 1))
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    for file in ("ca-cert.pem", "server-cert.pem"):
        (place / file).write_bytes(certificate)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (place / "server-key.pem").write_bytes(secret)
