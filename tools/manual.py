#!/usr/bin/env python3
"""tools/manual.py PROGRAM: the manual page, made of what the program says about itself."""
import subprocess
import sys


def says(*words):
    return subprocess.run([sys.argv[1], *words], check=True, capture_output=True, text=True).stdout


def roff(text):
    lines = text.rstrip().replace("\\", "\\e").replace("-", "\\-").split("\n")
    return "\n".join("\\&" + x if x.startswith((".", "'")) else x for x in lines)


def block(text):
    return f".nf\n{roff(text)}\n.fi\n"


def main():
    help_text = says("--help")
    version = help_text.split(":")[0].split()[1]
    summary = help_text.split("\n")[0].split(": ", 1)[1]
    commands = [line[2:].split("  ")[0].strip() for line in help_text.split("\n") if line.startswith("  ")]
    commands = [" ".join(c.split()[:2 if c.startswith("bench ") else 1]) for c in commands]
    page = f'.TH KAKEYA 1 "" "kakeya {version}" "User Commands"\n.SH NAME\nkakeya \\- {roff(summary)}\n'
    page += ".SH SYNOPSIS\n.B kakeya\nCOMMAND [options]\n.SH COMMANDS\n"
    page += block("\n".join(x for x in help_text.split("\n") if x.startswith("  ")))
    page += (".SH OPTIONS\nAn option may also be given in the environment, as KAKEYA_NAME with _ for \\-, or in the "
             "file of \\-\\-config.\n")
    for c in commands:
        page += f'.SS "kakeya {c}"\n' + block(says(*c.split(), "--help"))
    page += ('.SH FILES\n.I ../share/kakeya/models/tiny\nbeside the program: the model that is used when '
             'none is given.\n.SH "EXIT STATUS"\n0 success, 1 failure, 2 usage.\n')
    sys.stdout.write(page)


main()
