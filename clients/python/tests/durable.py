"""A session across the server's death: durable.py ADDRESS FILE, once before and once after it."""
import json
import os
import sys

import kakeya

ADDRESS, FILE = sys.argv[1], sys.argv[2]
PROMPT = [2, 17, 301, 44, 9, 1000, 7]


def main():
    with kakeya.Client(ADDRESS, timeout=120) as client:
        if not os.path.exists(FILE):
            session = client.create_session(client_label="to be continued")
            session.append_tokens(PROMPT)
            tokens = list(session.generate(10, ignore_eos=True))
            with open(FILE, "w") as f:
                json.dump({"id": session.session_id, "tokens": tokens}, f)
            return
        with open(FILE) as f:
            before = json.load(f)
        session = client.session(before["id"])
        assert session.info().history_length == len(PROMPT) + 10, session.info()
        after = list(session.generate(10, ignore_eos=True))
        with client.create_session() as fresh:
            fresh.append_tokens(PROMPT)
            assert list(fresh.generate(20, ignore_eos=True)) == before["tokens"] + after
        session.close()


main()
