"""
What this machine is, and how to get along with it: its device, its fastest number type, its memory allocator.
"""
import ctypes
import platform

import torch


def pick_device(device='auto'):
    """'cuda', 'mps' or 'cpu' for 'auto', in this order of preference; else the name given, if it is there."""
    there = {'cpu': True, 'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available()}
    if device != 'auto':
        if not there.get(device.partition(':')[0]):
            raise SystemExit(f'--device={device}: this machine has {" and ".join(kind for kind in there if there[kind])}.')
        return device
    return 'cuda' if there['cuda'] else 'mps' if there['mps'] else 'cpu'


def pick_dtype(dtype='auto', device='cpu', int8=False):
    """
    The torch.dtype of a name; 'auto' is bfloat16 where the hardware multiplies it, else float32. 'int8', for weights alone
    and on the CPU, is there for those who ask with `int8`.
    """
    if dtype == 'auto':
        if device.startswith('cuda'):
            fast = torch.cuda.get_device_capability()[0] >= 8  # Ampere
        else:
            able = torch.cpu.get_capabilities() if device == 'cpu' and hasattr(torch.cpu, 'get_capabilities') else {}
            fast = able.get('amx_bf16', able.get('amx_tile', False)) or able.get('avx512_bf16', False)
        dtype = 'bfloat16' if fast else 'float32'
    names = {'bfloat16': torch.bfloat16, 'float16': torch.float16, 'float32': torch.float32}
    if int8 and device == 'cpu':
        names['int8'] = torch.int8
    if dtype not in names:
        raise SystemExit(f'--dtype={dtype}: must be auto, {", ".join(names)}.')
    return names[dtype]


def keep_freed_memory():
    """
    Have glibc keep freed memory instead of giving it back to the system: large tensors come and go at every step, and
    clearing fresh pages for them costs a sixth of a CPU training step. Does nothing elsewhere than on Linux.
    """
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: below 1 GiB, take memory from the heap
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: and leave up to 1 GiB of it there
