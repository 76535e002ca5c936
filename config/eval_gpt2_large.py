# The validation loss of OpenAI's gpt2-large on OpenWebText: python train.py config/eval_gpt2_large.py
init_from = 'gpt2-large'
dataset = 'openwebtext'
out_dir = 'out-eval-gpt2'
batch_size = 8
eval_only = True
