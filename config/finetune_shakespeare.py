# GPT-2 XL learns Shakespeare: python data/shakespeare/prepare.py && python train.py config/finetune_shakespeare.py
out_dir = 'out-shakespeare'
dataset = 'shakespeare'
init_from = 'gpt2-xl'  # 1.5 B parameters; gpt2, gpt2-medium and gpt2-large are smaller

dropout = 0.0
batch_size = 1
gradient_accumulation_steps = 32  # 32 sequences * 1,024 tokens = 32,768 tokens a step, 9 steps an epoch
max_iters = 20
learning_rate = 3e-5
decay = 'none'
warmup_iters = 0
eval_interval = 5
log_interval = 1
gradient_checkpointing = True
