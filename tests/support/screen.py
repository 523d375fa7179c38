"""A terminal's screen: what remains to be seen of what was written to it. As much of ECMA-48 as progress bars use."""

from __future__ import annotations

import io
import re

from rich.cells import cell_len

_TOKEN = re.compile(r"\x1b\[(\??)(\d*)([A-Za-z])|(.)", re.DOTALL)


class Screen:
    def __init__(self, columns: int = 80) -> None:
        self.columns = columns
        self.rows: list[str] = [""]
        self.row = self.column = 0
        self.wraps = True
        self.cursor_shown = True
        #: The widest that a row ever became, in cells.
        self.widest = 0

    @property
    def text(self) -> list[str]:
        """Return the rows down to the cursor: those below it are blank where bars have gone."""
        assert not any(row.strip() for row in self.rows[self.row + 1 :])
        return [row.rstrip() for row in self.rows[: self.row + 1]]

    def feed(self, text: str) -> None:
        for private, number, command, char in _TOKEN.findall(text):
            if char:
                self._character(char)
            elif private:
                self._mode(int(number), command == "h")
            elif command == "A":
                self.row = max(0, self.row - int(number or 1))
            elif command == "K":
                self.rows[self.row] = "" if number == "2" else self.rows[self.row][: self.column]
            elif command == "J":
                self.rows[self.row] = self.rows[self.row][: self.column]
                del self.rows[self.row + 1 :]
            else:
                raise AssertionError(f"this screen does not know CSI {number}{command}")

    def _mode(self, number: int, on: bool) -> None:
        if number == 7:
            self.wraps = on
        elif number == 25:
            self.cursor_shown = on
        else:
            raise AssertionError(f"this screen does not know mode {number}")

    def _character(self, char: str) -> None:
        if char == "\r":
            self.column = 0
        elif char == "\n":  # as a terminal's line discipline sends it
            self.row, self.column = self.row + 1, 0
            if self.row == len(self.rows):
                self.rows.append("")
        else:
            assert char.isprintable(), f"{char!r} steers the terminal"
            row = self.rows[self.row]
            self.rows[self.row] = row[: self.column].ljust(self.column) + char + row[self.column + 1 :]
            self.column += 1
            self.widest = max(self.widest, cell_len(self.rows[self.row]))


class Terminal(io.StringIO):
    """A stream that a screen follows."""

    def __init__(self, columns: int = 80, lines: int = 24, encoding: str = "utf-8") -> None:
        super().__init__()
        self.screen, self.lines, self.frames = Screen(columns), lines, 0
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        text.encode(self.encoding)
        self.frames += 1
        self.screen.feed(text)
        return len(text)

    def width(self) -> int:
        return self.screen.columns

    def size(self) -> tuple[int, int]:
        return self.screen.columns, self.lines
