"""What every stage needs: options, the log, nets in files of at most 15 MiB."""
import glob
import json
import os
import time

import torch
from safetensors.torch import load_file, save_file

import documents
import nets
import stream

PART = 15 << 20
START = time.time()


def log(out, *words):
    line = f"[{time.time() - START:5.0f}s] " + " ".join(str(w) for w in words)
    print(line, flush=True)
    with open(os.path.join(out, "log.txt"), "a", encoding="utf-8") as f:
        f.write(line + "\n")


def save(net, out, name, metadata=None):
    """bf16, as NAME-0.safetensors, NAME-1.safetensors .. under PART bytes each; replaces what was there whole."""
    parts, size = [{}], 0
    for k, v in sorted(net.state_dict().items()):
        v = v.detach().to(torch.bfloat16).cpu().contiguous()
        n = v.numel() * 2
        if size + n > PART:
            parts.append({})
            size = 0
        parts[-1][k] = v
        size += n
    for i, p in enumerate(parts):
        path = os.path.join(out, f"{name}-{i}.safetensors")
        save_file(p, path + ".new", metadata=metadata)
        os.replace(path + ".new", path)


def tensors(folder, name):
    found = {}
    for path in sorted(glob.glob(os.path.join(folder, f"{name}-[0-9]*.safetensors"))):
        found.update(load_file(path))
    if not found:
        raise SystemExit(f"tools/train: {folder} has no {name}-0.safetensors: run the stage that makes it, or name its folder with --from")
    return found


def load(net, folder, name, device):
    net.load_state_dict({k: v.float() for k, v in tensors(folder, name).items()})
    return net.to(device)


def freeze(net):
    net.eval()
    for p in net.parameters():
        p.requires_grad_(False)
    return net


class Setup:
    """Sizes of a run. --smoke: the same steps on a net of a few thousand parameters, in seconds on a CPU."""

    def __init__(self, o):
        self.o, self.out, self.device = o, o.out, o.device
        self.cuda = o.device.startswith("cuda")
        self.v, self.d, self.rank = dict(nets.VERIFIER), dict(nets.DRAFTER), nets.RANK
        self.n, self.batch, self.segments = stream.ROW, 8, [512, 1024, 4096, 16384]
        self.draft_segments = [(512, 208), (2048, 272), (8192, 272)]      # length, of which generated
        self.pool, self.anchors, self.most = 256, 512, None
        if o.smoke:
            # Every expert works: a router that has learnt nothing ties, and a tie may turn a row over.
            self.v.update(top_k_experts=8, hidden_size=32, intermediate_size=32, head_dim=16, global_head_dim=32, moe_intermediate_size=16, sliding_window=96)
            self.d.update(hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=64)
            self.rank, self.n, self.batch, self.segments = 16, 512, 2, [256, 512]
            self.draft_segments, self.pool, self.anchors, self.most = [(256, 40)], 4, 16, 12
        os.makedirs(o.out, exist_ok=True)
        torch.manual_seed(o.seed)
        if self.cuda:
            torch.backends.cuda.matmul.allow_tf32 = True
            torch._dynamo.config.recompile_limit = 64
        elif o.smoke:
            torch.set_num_threads(1)
        self.bench = documents.Bench(o.root)

    def log(self, *words):
        log(self.out, *words)

    def seconds(self, full):
        return self.o.seconds if self.o.seconds else 4 if self.o.smoke else full

    def source(self, anew=True):
        """Text to learn from. anew: as documents.Words has it; in the verifier's first stage alone it is a list."""
        tokenizer = os.path.join(self.o.source, "tokenizer.json")
        if not os.path.exists(tokenizer):
            raise SystemExit(f"tools/train: {tokenizer} is missing: run the stage data first, or name its folder with --from")
        encoder, library = stream.Encoder(tokenizer), self.library()
        words = documents.Words(library, self.bench.reserved, encoder.texts(), anew)
        return stream.Source(encoder, words, stream.library_ids(encoder, library, "train"))

    def library(self):
        return documents.Library(self.o.library, self.most)

    def compile(self, f):
        return torch.compile(f, dynamic=False) if self.cuda else f

    def compile_layers(self):
        """One compilation for each kind of layer and shape, not for each layer."""
        if self.cuda:
            nets.Layer.forward = torch.compile(nets.Layer.forward, dynamic=False)

    def autocast(self):
        return torch.autocast("cuda", torch.bfloat16, enabled=self.cuda)

    def put(self, rows):
        """A batch of ids on the device, without waiting for what it computes."""
        ids = torch.from_numpy(rows)
        return (ids.pin_memory() if self.cuda else ids).to(self.device, non_blocking=True)

    def verifier(self, wide=True):
        net = freeze(load(nets.Verifier(self.v), self.o.source, "verifier", self.device))
        net.wide = wide
        return net

    def note(self, stage, **facts):
        """Figures of a stage, in report.json."""
        path = os.path.join(self.out, "report.json")
        report = json.load(open(path, encoding="utf-8")) if os.path.exists(path) else {}
        gpu = torch.cuda.get_device_name() if self.cuda else "cpu"
        report[stage] = dict(facts, device=gpu, torch=torch.__version__, seconds=round(time.time() - START))
        with open(path, "w", encoding="utf-8") as f:
            json.dump(report, f, indent=1)
            f.write("\n")
