"""Stage `settle`: the verifier and its f_theta go on together at half the rate, on long segments, with padding drawn anew;
the restored KL of turns, which is small in nats, counts for more."""
import verifier


def run(setup):
    verifier.run(setup, settle=True)
