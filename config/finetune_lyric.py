# Fine-tunes a pretrained Chinese GPT-2 of 1.5 B parameters: 48 layers, 25 heads, 1600 wide, block 1024.
#     python data/lyric/prepare.py && python train.py config/finetune_lyric.py
# Any smaller one fits smaller machines, e.g. --init_from=uer/gpt2-chinese-cluecorpussmall (and the same --pretrained=).
out_dir = 'out-lyric-ft'
dataset = 'lyric'
init_from = 'uer/gpt2-xlarge-chinese-cluecorpussmall'

block_size = 1024
dropout = 0.0
batch_size = 1
gradient_accumulation_steps = 32  # 32 sequences * 1,024 tokens = 32,768 tokens a step
max_iters = 160
learning_rate = 5e-5
decay = 'none'
warmup_iters = 0
beta2 = 0.95
eval_interval = 40
log_interval = 1
optimizer = 'adamw8'  # 7 bytes a weight for weights, gradients and states: 10.6 GB; AdamW takes 16, 24.2 GB
gradient_checkpointing = True
