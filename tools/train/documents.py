"""The documents that the embedded model learns from. Text only: stream.py turns it into ids.

Nothing is downloaded. Documents are drawn here, or are sources of the Python standard library that runs this
program. What the benches of the command line ask with (every word, name and prefix in src/cli/niah.c and
src/cli/workload.c) is reserved: it is never the subject of a fact, a question or a call in training, so that those
benches measure words the model has not been taught.

Six kinds, and what each teaches:
    code     the standard library, but for one file of sixteen and one test of four completion
    classes  small classes written by rule                                         regular completion
    needle   one code among numbered lines (the reference's document)               retrieval over a long way
    keyed    many codes, each for its own word, asked for in any order              retrieval by key
    tools    lines of JSON calls and results                                        copying structure
    chat     turns: facts told, acknowledged, asked for much later; small talk; calls; documents inside a turn
and `copy`, words said twice, as a first lesson.
"""
import copy as copies
import glob
import hashlib
import json
import os
import random
import re
import sysconfig

TURN, END, EOS = "<start_of_turn>", "<end_of_turn>", "<eos>"
PADDING = "Note {:04d}: this paragraph is unrelated padding and does not contain the answer."

NAMES = """Anna Ben Clara David Emma Felix Gina Henry Iris Jonas Karin Leon Maria Nils Olga Paul Rosa Simon Tina Uwe Vera
Walter Xenia Yusuf Zoe Amir Bruno Carla Diego Esther Fiona Gustav Hanna Igor Julia Kofi Lena Marco Nora Oscar Petra
Ravi Sofia Tomas Ursula Victor Wanda Yara Zeno""".split()
CITIES = """Paris Berlin Madrid Vienna Dublin Prague Athens Cairo Delhi Tokyo Seoul Boston Denver Dallas Geneva Milan Naples
Porto Seville Bergen Malmo Turku Tartu Vilnius Warsaw Krakow Zagreb Split Sofia Ankara Izmir Beirut Amman Nairobi
Accra Dakar Durban Harare Lusaka Mumbai Hanoi Manila Sydney Darwin Hobart Suva Bogota Cusco Recife Santos""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


class Bench:
    """The words that the benches ask with, read from their sources: lists prefixes, words, names, cities, tools, nouns."""

    def __init__(self, root):
        text = ""
        for name in ("niah.c", "workload.c"):
            with open(os.path.join(root, "src/cli", name), encoding="utf-8") as f:
                text += f.read()
        lists = {k: re.findall(r'"([A-Za-z]+)"', v) for k, v in re.findall(r"(\w+)\[\] = \{(.*?)\};", text, re.S)}
        missing = [k for k in ("prefixes", "words", "names", "cities", "tools", "nouns") if not lists.get(k)]
        if missing:
            raise SystemExit(f"tools/train: src/cli has no list {missing[0]}[] any more: mend documents.Bench")
        self.__dict__.update(lists)
        self.reserved = {w.lower() for v in lists.values() for w in v}


class Library:
    """The standard library's sources in three parts, split by name so that a file is in the same part everywhere:
    `train`; `held`, one file in sixteen; `unseen`, one in four of its tests (the other tests are in `train`)."""
    WITHOUT = ("site-packages", "dist-packages", "pydoc_data", "encodings/", "lib2to3/tests/data")

    def __init__(self, folder=None, most=None):
        folder = folder or sysconfig.get_paths()["stdlib"]
        self.files = {"train": [], "held": [], "unseen": []}
        for path in sorted(glob.glob(folder + "/**/*.py", recursive=True)):
            name = os.path.relpath(path, folder)
            if any(x in name for x in self.WITHOUT):
                continue
            digest, test = hashlib.sha1(name.encode()).digest()[0], {"test", "tests"} & set(name.split("/")[:-1])
            part = "unseen" if test and digest < 64 else "held" if not test and digest < 16 else "train"
            self.files[part].append(path)
        if most:
            self.files = {k: v[:most] for k, v in self.files.items()}

    def texts(self, part):
        for path in self.files[part]:
            try:
                with open(path, encoding="utf-8") as f:
                    text = f.read(200_000)           # the longest are tables
            except (UnicodeDecodeError, OSError):
                continue
            if len(text) > 500:
                yield text


class Words:
    """What facts are about, drawn at random: words of the library, made-up ones, and any tokens of letters side by side,
    so that there is no token that was never copied. Padding is of such words too, half of them made up: of a list, or
    drawn anew for each sentence (`anew`), since a list is learnt by heart."""
    ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pl r s sh st t th tr v w z".split()
    VOWELS = "a e i o u ai ea io ou".split()
    CODAS = ["", "", "", "n", "r", "l", "s", "m", "nd", "rt", "x"]

    own = None                                       # the only words, if they are few

    def __init__(self, library, taken, tokens, anew=False):
        self.taken, self.anew = taken, anew
        found = set()
        for text in library.texts("train"):
            found |= set(re.findall(r"\b[a-z]{3,10}\b", text))
        self.library = sorted(found - taken)
        self.names = [w for w in NAMES if w.lower() not in taken]
        self.cities = [w for w in CITIES if w.lower() not in taken]
        letters = sorted({t.strip() for t in tokens if t.isascii() and t.strip().isalpha()})
        self.upper, self.lower = [t for t in letters if t.isupper()], [t for t in letters if t.islower()]
        self.title = [t for t in letters if t[0].isupper() and not t[1:].isupper()]
        real = self.library + [t for t in self.lower if len(t) > 2 and t not in taken]
        r = random.Random(len(real))
        self.filler = real if anew else real + [self.fresh(r, *self.strange()) for _ in real]

    def strange(self):
        return (0, 0.4), self.lower, self.lower

    def made_up(self, r):
        return "".join(r.choice(self.ONSETS) + r.choice(self.VOWELS) + r.choice(self.CODAS) for _ in range(r.randint(1, 3)))

    def fresh(self, r, shares, first, pieces):
        """A word that is not reserved: of the library, made up, or of tokens, with these shares."""
        while True:
            u = r.random()
            if u < shares[0]:
                w = r.choice(self.library)
            elif u < shares[0] + shares[1]:
                w = self.made_up(r)
            else:
                w = r.choice(first) + "".join(r.choice(pieces) for _ in range(r.randint(0, 2)))
            if 3 <= len(w) <= 14 and w.lower() not in self.taken:
                return w

    def few(self, r):
        """The words of one document: as often as not padding and subjects come from the same few, so that what is asked
        for has also passed by as padding."""
        if r.random() < 0.5:
            return self
        w = copies.copy(self)
        n = r.choice((60, 120, 240))
        w.own = list({self.padding(r) for _ in range(n)}) if self.anew else r.sample(self.filler, min(len(self.filler), n))
        return w

    def padding(self, r):
        if self.own:
            return r.choice(self.own)
        return self.fresh(r, *self.strange()) if self.anew and r.random() < 0.5 else r.choice(self.filler)

    def word(self, r):
        return r.choice(self.own) if self.own else self.fresh(r, (0.5, 0.2), self.lower, self.lower)

    def proper(self, r, known):
        if r.random() < 0.25:
            return r.choice(known)
        w = self.fresh(r, (0.25, 0.35), self.title, self.lower)
        return w[0].upper() + w[1:]

    def name(self, r):
        return self.proper(r, self.names)

    def city(self, r):
        return self.proper(r, self.cities)

    def prefix(self, r):
        return self.fresh(r, (0.25, 0.25), self.upper, self.upper).upper()[:10]

    def code_family(self, r):
        """(prefixes, least number, most): codes of one document are alike, so that only its key tells one from another."""
        least = r.randint(1000, 9000) if r.random() < 0.3 else 1000
        return [self.prefix(r) for _ in range(r.choice((1, 2, 4, 8, 16, 40)))], least, least + 300 if least > 1000 else 9999

    def code(self, r, family):
        u = r.random()
        if u < 0.94:
            return f"{r.choice(family[0])}-{r.randint(*family[1:])}"
        return str(r.randint(1000, 999999)) if u < 0.97 else f"{self.word(r)}-{self.word(r)}"

    def sentence(self, r, least=4, most=10):
        return "".join(" " + self.padding(r) for _ in range(r.randint(least, most))) + "."


# ---- raw documents

def needle_parts(w, r, lines):
    """-> (document, question, answer): the reference's text, or one like it with other padding and fewer lines."""
    code = w.code(r, w.code_family(r))
    if r.random() < 0.7:
        line = PADDING
    else:
        line, lines = r.choice(["Note", "Line", "Entry", "Remark"]) + " {:04d}:" + w.sentence(r, 3, 6), (lines + 1) // 2
    at, out = r.randint(4, lines - 4) if lines >= 9 else r.randint(0, lines - 1), []
    for i in range(lines):
        if i == at:
            out.append(f"\nIMPORTANT: the secret code is {code}.\n")
        out.append(line.format(i))
    return "\n".join(out) + "\n" + "\n" * (r.random() < 0.2), "Question: what is the secret code? Answer:", f" {code}"


def needle(w, r, lines):
    return "".join(needle_parts(w, r, lines)) + EOS


def keyed_parts(w, r, facts, lines):
    """-> (document, {word: code}, words in the document's order)"""
    codes, family = {}, w.code_family(r)
    while len(codes) < facts:
        codes.setdefault(w.word(r), w.code(r, family))
    at = sorted((r.randint(0, lines), k) for k in codes)
    out, n = [], 0
    for line in range(lines + 1):
        while n < len(at) and at[n][0] == line:
            out.append(f"\nIMPORTANT: the secret code for {at[n][1]} is {codes[at[n][1]]}.")
            n += 1
        if line < lines:
            out.append("\n" + w.sentence(r))
    return "".join(out), codes, [k for _, k in at]


def questions(r, keys, n, again=0.4):
    """n keys to ask for: the last one again, or any."""
    last = r.choice(keys)
    for _ in range(n):
        yield last
        if r.random() >= again:
            last = r.choice(keys)


def keyed(w, r, facts, lines, asked):
    text, codes, order = keyed_parts(w, r, facts, lines)
    out = [text]
    for k in questions(r, order, asked):
        out.append(f"\nQuestion: what is the secret code for {k}? Answer: {codes[k]}")
    return "".join(out) + "\n" + EOS


def keyed_in_turns(w, r, facts, lines, asked):
    """The same: the first question ends the turn that holds the document, each other one is a turn."""
    text, codes, order = keyed_parts(w, r, facts, lines)
    out, said = [], text.strip() + "\n"
    for k in questions(r, order, asked):
        out.append(turn(f"{said}Question: what is the secret code for {k}? Answer:", f" {codes[k]}"))
        said = ""
    return "".join(out) + EOS


def copy(w, r, n):
    s = "".join(" " + w.word(r) for _ in range(n))
    return s + "\n" + s + "\n" + EOS


class Tool:
    """One interface of a log: how a call and its result are written, and what values they take."""

    def __init__(self, w, r):
        self.names = [w.word(r) if r.random() < 0.7 else f"{w.word(r)}_{w.word(r)}" for _ in range(r.randint(1, 6))]
        self.places = [w.city(r) for _ in range(r.randint(2, 10))]
        usual = r.random() < 0.6
        self.place, self.number = ("city", "days") if usual else (w.word(r), w.word(r))
        self.flag = "ok" if usual or r.random() < 0.5 else w.word(r)

    def draw(self, r):
        return r.choice(self.names), r.choice(self.places), r.randint(1, 9)

    def call(self, c):
        return json.dumps({"call": c[0], "arguments": {self.place: c[1], self.number: c[2]}})

    def result(self, c):
        return json.dumps({"result": {self.place: c[1], self.flag: True}})


def tools(w, r, calls, again=0.45):
    """A program that polls: often the last call once more."""
    t, out = Tool(w, r), []
    c = t.draw(r)
    for _ in range(calls):
        out.append(t.call(c) + "\n" + t.result(c) + "\n")
        if r.random() >= again:
            c = t.draw(r)
    return "".join(out) + EOS


CLOSED = '        if self.closed:\n            raise ValueError("I/O operation on closed file")\n'
METHODS = [
    "    def read(self, size=-1):\n" + CLOSED + "        return self._read(size)\n",
    "    def write(self, data):\n" + CLOSED + "        return self._write(data)\n",
    "    def flush(self):\n" + CLOSED + "        self._flush()\n",
    "    def seek(self, offset, whence=0):\n" + CLOSED + "        return self._seek(offset, whence)\n",
    "    def tell(self):\n" + CLOSED + "        return self._tell()\n",
    "    def close(self):\n        if not self.closed:\n            self.flush()\n            self.closed = True\n",
    "    def reset(self):\n        self.{b} = None\n        self.closed = False\n",
    "    def get_{b}(self):\n        return self.{b}\n",
    "    def set_{b}(self, value):\n        self.{b} = value\n",
    "    def __len__(self):\n        return self.size\n",
    '    def __repr__(self):\n        return "<%s %s>" % (self.__class__.__name__, self.name)\n',
    "    def __enter__(self):\n        return self\n",
    "    def __exit__(self, *args):\n        self.close()\n",
]


def class_text(r, a, b):
    methods = [m for m in METHODS if r.random() < 0.85]
    return (f'class {a.title()}{b.title()}(object):\n    """A {a} with a {b}."""\n\n'
            f"    def __init__(self, name, size={1 << r.randint(3, 12)}):\n        self.name = name\n"
            f"        self.size = size\n        self.{b} = None\n\n" + "\n".join(methods).replace("{b}", b))


def classes(w, r, n):
    a, b = w.word(r), w.word(r)
    out = ["import os\nimport sys\n"]
    for _ in range(n):
        out.append("\n\n" + class_text(r, a, b))
        a, b = (b, a) if r.random() < 0.6 else (w.word(r), w.word(r))
    return "".join(out) + EOS


# ---- conversation

FACTS = [  # what is said, the answer to it, then questions with theirs; every slot follows a space wherever it stands
    ("My friend {who} lives in {city} and has {n} cats. Please remember it.", "I will remember that {who} lives in {city}.",
     ("Where does {who} live?", "You told me that {who} lives in {city}."),
     ("How many cats does {who} have?", "You told me that {who} has {n} cats.")),
    ("My colleague {who} works in {city} as a {x}.", "I will remember that {who} works as a {x}.",
     ("What does {who} do?", "You told me that {who} works as a {x}."),
     ("Where does {who} work?", "You told me that {who} works in {city}.")),
    ("The secret code for {x} is {code}.", "I will remember that the secret code for {x} is {code}.",
     ("What is the secret code for {x}?", "The secret code for {x} is {code}.")),
    ("IMPORTANT: the secret code is {code}.", "I will remember that the secret code is {code}.",
     ("What is the secret code?", "The secret code is {code}.")),
    ("Please note that the {x} is in the {y}.", "I will remember that the {x} is in the {y}.",
     ("Where is the {x}?", "You told me that the {x} is in the {y}.")),
    ("My favourite word is {x}.", "I will remember that your favourite word is {x}.",
     ("What is my favourite word?", "Your favourite word is {x}.")),
    ("My name is {who}.", "I will remember that your name is {who}.",
     ("What is my name?", "Your name is {who}.")),
    ("There is a meeting with {who} on {day} at {n} in {city}.", "I will remember the meeting with {who} on {day}.",
     ("When is the meeting with {who}?", "The meeting with {who} is on {day} at {n} in {city}.")),
]
SMALL_TALK = [
    ("hello", "Hello. Tell me something to remember, or ask me about it."), ("hi", "Hello. Tell me something to remember, or ask me about it."),
    ("Hello!", "Hello. Tell me something to remember, or ask me about it."), ("thanks", "You are welcome."), ("Thank you.", "You are welcome."),
    ("How are you?", "I am well, and I remember what you told me."), ("Who are you?", "I am a small model that remembers what you tell me."),
    ("What can you do?", "I remember facts, codes and calls, and I find them again."), ("ok", "Go on."), ("Goodbye.", "Goodbye."),
]


def turn(user, model):
    return f"{TURN}user\n{user}{END}\n{TURN}model\n{model}{END}\n"


class Chat:
    """One conversation. A fact may be asked for at any time after it was told; the last question often comes again."""

    def __init__(self, w, r):
        self.w, self.r, self.known, self.out, self.size, self.last = w, r, {}, [], 0, None
        self.repeats = r.random() < 0.85
        self.tool, self.codes = Tool(w, r), w.code_family(r)
        self.people, self.places = ([draw(r) for _ in range(r.choice((2, 5, 12, 40)))] for draw in (w.name, w.city))
        self.weights = r.choice([(6, 4, 2, 1, 1), (2, 2, 8, 1, 1), (8, 8, 1, 0, 1), (2, 3, 1, 0, 6)])

    def say(self, user, model, kind):
        self.out.append(turn(user, model))
        self.size += len(self.out[-1])
        self.last = (kind, user, model)

    def slots(self):
        w, r = self.w, self.r
        return dict(who=r.choice(self.people), city=r.choice(self.places), n=r.randint(2, 12), x=w.word(r), y=w.word(r),
                    code=w.code(r, self.codes), day=r.choice(DAYS))

    def tell(self, fact=None, slots=None):
        fact = fact or (FACTS[0] if self.r.random() < 0.25 else self.r.choice(FACTS))
        slots = slots or self.slots()
        for question, answer in fact[2:]:
            self.known[question.format(**slots)] = answer.format(**slots)   # what is told again holds
        self.say(fact[0].format(**slots), fact[1].format(**slots), "tell")
        self.told = (fact, slots)

    def ask(self):
        if not self.known:
            return self.tell()
        q = self.r.choice(list(self.known))
        self.say(q, self.known[q], "ask")

    def talk(self):
        if self.r.random() < 0.4:
            return self.say(*self.r.choice(SMALL_TALK), "talk")
        text = "".join(self.w.sentence(self.r) for _ in range(self.r.randint(1, 4))).strip()
        self.say("Today:" + " " + text, "I see. Go on.", "talk")

    def document(self, room):
        w, r = self.w, self.r
        if r.random() < 0.6:
            text, question, answer = needle_parts(w, r, max(10, min(r.randint(10, 60), room // 90)))
            return self.say(text + question, answer, "document")
        text, codes, order = keyed_parts(w, r, r.randint(2, 12), max(2, min(r.randint(4, 60), room // 60)))
        k = r.choice(order)
        self.say(f"{text.strip()}\nQuestion: what is the secret code for {k}? Answer:", f" {codes[k]}", "document")

    def call(self):
        t, r = self.tool, self.r
        c = t.draw(r)
        self.say(f'Please call "{c[0]}" with {t.place} "{c[1]}" and {t.number} {c[2]}.', t.call(c), "call")
        self.say(t.result(c), "Done.", "result")

    def one(self, room):
        kind = self.last and self.last[0]
        if self.repeats and kind == "ask" and self.r.random() < 0.45:
            return self.say(self.last[1], self.last[2], "ask")
        if self.repeats and kind == "tell" and self.r.random() < 0.25:
            fact, slots = self.told
            return self.tell(fact, dict(slots, n=self.r.randint(2, 12)))
        what = self.r.choices(("tell", "ask", "talk", "document", "call"), self.weights)[0]
        if what == "document":
            return self.document(room)
        getattr(self, what)()


def chat(w, r, characters):
    c = Chat(w, r)
    while c.size < characters:
        c.one(characters - c.size)
    return "".join(c.out) + EOS


def needle_in_turn(w, r, lines):
    """One document that fills a user's turn, and its question."""
    c = Chat(w, r)
    text, question, answer = needle_parts(w, r, lines)
    c.say(text + question, answer, "document")
    for _ in range(r.randint(0, 3)):
        c.one(200)
    return "".join(c.out) + EOS
