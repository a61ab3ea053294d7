#!/bin/bash
# kakeya chat as a person sees it, on a pseudo-terminal.
. tests/cli_lib.sh

# libedit keeps the names of keys' functions for ever; that is no leak of ours.
echo leak:wcsdup >"$KK_TMP/lsan"
export LSAN_OPTIONS=suppressions=$KK_TMP/lsan:print_suppressions=0

# Prints "ok - .." lines itself: what is on the screen after each thing typed.
python3 - "$KK_BIN" models/tiny <<'P' || KK_FAILED=1
import fcntl, os, pty, re, select, signal, struct, sys, termios, time

failed = 0


def check(what, good, seen=b""):
    global failed
    failed |= not good
    print(("ok - " if good else "not ok - ") + what)
    if not good:
        print("    " + repr(seen[-400:]))


class Terminal:
    def __init__(self, *args, **env):
        self.seen = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            keep = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "LC_ALL", "LANG")}
            os.execve(sys.argv[1], [sys.argv[1], "chat", "-m", sys.argv[2], *args],
                      {**keep, "TERM": "xterm", "LC_ALL": "C.UTF-8", **env})
        self.size(24, 60)

    def size(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, pattern, seconds=60):
        """Read until the pattern has been seen since the last call; what was read."""
        seen, end = b"", time.time() + seconds
        while not re.search(pattern, seen) and time.time() < end:
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    seen += os.read(self.fd, 65536)
                except OSError:
                    break
        self.seen += seen
        return seen

    def type(self, text):
        os.write(self.fd, text if isinstance(text, bytes) else text.encode())

    def end(self):
        self.until(b"nothing", 0.3)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


PROMPT = rb">(\x1b\[0m)? (\x1b\[K)?$"
t = Terminal("-n", "6")
seen = t.until(PROMPT)
check("greets", b"gemma turns" in seen and b"/help" in seen, seen)
check("colours on a terminal", b"\x1b[2m" in seen and b"\x1b[1;32m" in seen, seen)
t.type("hello\r")
seen = t.until(PROMPT)
check("answers, and says how", re.search(rb"\[6 tokens, .*history \d+; cut off by -n\]", seen), seen)
t.type("one\\\r")
seen = t.until(rb"\. $")
check("goes on after a backslash", b"\r\n" in seen, seen)
t.type("two\r")
t.until(PROMPT)
t.type("\x1b[A")
seen = t.until(rb"two")
check("earlier lines come back", b"two" in seen, seen)
t.type("\x03")
seen = t.until(PROMPT)
check("Ctrl-C throws a line away", b"^C" in seen and b"tokens" not in seen, seen)
t.type("日本語é")
seen = t.until("é".encode())
t.size(24, 40)
t.type("\x7f\x7f\r")
seen = t.until(PROMPT)
check("wide characters; a window that changes", b"tokens" in seen and b"kakeya:" not in seen, seen)
check("the terminal is asked to mark what is pasted", b"\x1b[?2004h" in seen, seen)
t.type("say \x1b[200~one\rtwo \\\r\x03é" + "wide 日本 " * 200 + "\x1b[201~, please")
t.type("\r")
seen = t.until(PROMPT)
check("a paste is one message", seen.count(b" tokens, ") == 1 and b"kakeya:" not in seen, seen)
t.type("/nothing\r")
seen = t.until(PROMPT)
check("a mistake can be tried again", b"is no command" in seen, seen)
t.type("/stats\r")
seen = t.until(PROMPT)
check("/stats", b"committed per block" in seen, seen)
t.type("\x04")
check("Ctrl-D ends", t.end() == 0, t.seen)

t = Terminal("-n", "1000000", "--ignore-eos", NO_COLOR="1")
seen = t.until(PROMPT)
check("NO_COLOR", not re.search(rb"\x1b\[[0-9;]*[1-9]m", seen), seen)
t.type("hello\r")
t.until(rb"\r\n.*\r\n")
t.type("\x03")
seen = t.until(PROMPT)
check("Ctrl-C stops an answer", b"stopped by Ctrl-C]" in seen, seen)
t.type("/exit\r")
check("/exit ends", t.end() == 0, t.seen)

t = Terminal("-n", "6", "--cpu-isa", "scalar", "--threads", "1", "--prefill-chunk", "1")
t.until(PROMPT)
t.type("\x1b[200~")
for _ in range(8):
    t.type("the quick brown fox jumps " * 10)
    t.until(b"nothing", 0.02)
t.type("\x1b[201~\r")
t.until(rb"reading \[")
t.type("\x03")
seen = t.until(PROMPT)
check("Ctrl-C stops reading", b"stopped by Ctrl-C while reading]" in seen, seen)
t.type("hello\r")
seen = t.until(PROMPT)
check("the conversation goes on", b"[6 tokens" in seen, seen)
t.type("\x04")
t.end()

t = Terminal("-n", "6", TERM="dumb", LC_ALL="C")
seen = t.until(PROMPT)
t.type("é\r")
seen += t.until(PROMPT)
check("a dumb terminal, no locale", b"tokens" in seen and b"\x1b" not in seen, seen)
os.kill(t.pid, signal.SIGTERM)
check("SIGTERM ends", t.end() == -signal.SIGTERM, t.seen)
sys.exit(failed)
P
done_testing
