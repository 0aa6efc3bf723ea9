"""What a server can show: `pattern` a test picture, `x11` an X display (on `xscreen` and `xcb`).

`xvfb` starts an X display of one's own and programs on it (on `processes`).
"""
