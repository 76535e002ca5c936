"""
Completes lyrics: every line of prompt.txt, or a line of your own, all prompts in one batch.

    python completion.py                                          # the newest out-* folder, the lines of prompt.txt
    python completion.py --out_dir=out-lyric-char --start="风吹过旧码头" --num_samples=3
    python completion.py --start=FILE:my_prompts.txt --temperature=0
    python completion.py --start="风吹过旧码头" --stream
"""
import glob
import os
import sys
import time

# before torch: on a busy machine, threads that spin while they wait make small operations 40 times slower
os.environ.setdefault('GOMP_SPINCOUNT', '2000')
import torch

import checkpoint
import machine
from configurator import HERE, configure
from inference import generate, stream as stream_ids, text_stream

out_dir = ''  # a model folder, or any GPT-2 on the Hugging Face hub; '' = the newest out-* folder
start = 'FILE:prompt.txt'  # the text to continue, or FILE:path for one prompt a line
num_samples = 1  # completions of each prompt
max_new_tokens = 120  # tokens at most; a song's end may come earlier
temperature = 0.8  # below 1 plainer, above 1 wilder; 0.0 = always the likeliest token
top_k = 0  # draw from the k likeliest tokens; 0 = off
top_p = 0.9  # draw from the likeliest tokens that together have this probability; 1.0 = off
repetition_penalty = 1.0  # above 1 makes tokens that stand already less likely; 1.0 = off
seed = 1337  # the same seed gives the same text
stream = False  # print as it comes, for a single prompt
device = 'auto'  # auto, cpu, cuda, mps
dtype = 'auto'  # auto, float32, bfloat16, float16; int8: weights of 8 bits, on a CPU the fastest for one song at a time
configure(globals())


def newest_model():
    """The out-* folder whose model was written last."""
    found = glob.glob(os.path.join('out*', 'model.safetensors'))
    if not found:
        raise SystemExit('There is no out-* folder with a model here. Train one first: python train.py config/quickstart.py')
    return os.path.dirname(max(found, key=os.path.getmtime))


def read_prompts(start):
    """The prompts that `start` names, none empty."""
    if not start.startswith('FILE:'):
        prompts = [start]
    else:
        path = start[5:]
        path = path if os.path.exists(path) else os.path.join(HERE, path)
        try:
            with open(path, encoding='utf-8-sig') as f:
                prompts = f.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SystemExit(f'--start={start}: cannot be read ({error}).') from error
    prompts = [p.strip().encode('utf-8', 'replace').decode() for p in prompts if p.strip()]  # bytes that are no text become '?'
    if not prompts:
        raise SystemExit(f'--start={start.strip()}: there is no text to continue.')
    return prompts


for name, value, low in (('num_samples', num_samples, 1), ('max_new_tokens', max_new_tokens, 1), ('temperature', temperature, 0),
                         ('top_k', top_k, 0), ('top_p', top_p, 1e-9), ('repetition_penalty', repetition_penalty, 1e-9)):
    if value < low:
        raise SystemExit(f'--{name}={value}: must be {low if low != 1e-9 else "more than 0"} or more.')
prompts = [p for p in read_prompts(start) for _ in range(num_samples)]
if stream and len(prompts) > 1:
    raise SystemExit(f'--stream prints one completion as it comes; here are {len(prompts)}. Give one --start="...".')
if not out_dir:
    out_dir = newest_model()
    print(f'model: {out_dir}', file=sys.stderr)
device = machine.pick_device(device)
model, tokenizer = checkpoint.load_model(out_dir, device, machine.pick_dtype(dtype, device, int8=True), generating=True)
unknown = sorted({piece for p in prompts for piece in tokenizer.unknown(p)})
if unknown:
    print(f'unknown to this model, read as a blank: {" ".join(unknown)}', file=sys.stderr)
ids = [[tokenizer.bos_id] + tokenizer.encode(p) for p in prompts]
options = dict(generator=torch.Generator(device).manual_seed(seed), stop_id=tokenizer.eot_id, banned_ids=tokenizer.banned_ids,
               temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty)
if stream:
    print(prompts[0], end='', flush=True)
    for piece in text_stream(tokenizer, (new[0] for new in stream_ids(model, ids, max_new_tokens, **options))):
        print(piece, end='', flush=True)
    print()
    raise SystemExit(0)
began = time.time()
completions = generate(model, ids, max_new_tokens, **options)
for prompt, new in zip(prompts, completions):
    print(prompt + tokenizer.decode(new).rstrip() + '\n' + '-' * 30)
tokens = sum(map(len, completions))
print(f'{tokens:,} tokens in {time.time() - began:.1f} s, {tokens / (time.time() - began):,.0f} tokens/s', file=sys.stderr)
