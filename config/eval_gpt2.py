# The validation loss of OpenAI's gpt2 on OpenWebText: python train.py config/eval_gpt2.py
init_from = 'gpt2'
dataset = 'openwebtext'
out_dir = 'out-eval-gpt2'
batch_size = 8
eval_only = True
