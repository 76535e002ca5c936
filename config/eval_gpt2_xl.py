# The validation loss of OpenAI's gpt2-xl on OpenWebText: python train.py config/eval_gpt2_xl.py
init_from = 'gpt2-xl'
dataset = 'openwebtext'
out_dir = 'out-eval-gpt2'
batch_size = 8
eval_only = True
