# GPT-2 (124 M) from scratch on OpenWebText, nanoGPT's recipe, on 8 cards:
#     torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py --compile
out_dir = 'out-gpt2'
dataset = 'openwebtext'

n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
dropout = 0.0

batch_size = 12
gradient_accumulation_steps = 5 * 8  # 40 * 12 sequences * 1,024 tokens = 491,520 tokens a step
max_iters = 600000
learning_rate = 6e-4
min_lr = 6e-5
beta2 = 0.95
warmup_iters = 2000
eval_interval = 1000
