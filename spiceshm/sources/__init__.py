"""What a server can show: `pattern` a test picture, `x11` an X display (on `xscreen` and `xcb`)."""
