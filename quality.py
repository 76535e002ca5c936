"""
How lyrics read, in figures: variety, repeats, line lengths, rhyme, and how much of them is copied from another text. Each
figure says little alone; next to the same figure of real songs of the same length it says much.
"""
import re

import numpy as np

# The thirteen rhyme classes of northern song, 十三辙, as pypinyin spells finals. Tones don't count; zhi and zi go with ji.
RHYMES = {'发花': 'a ia ua', '梭波': 'o e uo io', '乜斜': 'ie ve ê', '一七': 'i v er', '姑苏': 'u', '怀来': 'ai uai',
          '灰堆': 'ei uei', '遥条': 'ao iao', '油求': 'ou iou', '言前': 'an ian uan van', '人辰': 'en in uen vn',
          '江阳': 'ang iang uang', '中东': 'eng ing ueng ong iong'}
CLASS_OF = {final: name for name, finals in RHYMES.items() for final in finals.split()}
LIGHT = '了的着吗呢吧啊呀啦呐哪子们'  # unstressed endings: 走了 rhymes with 留了 by 走 and 留, and with 歌 by 了


def letters(text):
    """The Chinese characters of a text, nothing else."""
    return ''.join(re.findall('[\u4e00-\u9fff]', text))


def endings(lines):
    """For each line the (character, rhyme class) pairs it may rhyme by: its last; if light, the one before too."""
    from pypinyin import Style, lazy_pinyin
    found = []
    for line in map(letters, lines):
        classes = [CLASS_OF.get(final) for final in lazy_pinyin(line[-4:], style=Style.FINALS)]  # four: 找不着, 银行
        last = 2 if line[-1] in LIGHT and len(line) > 1 else 1
        found.append({(line[-k], classes[-k]) for k in range(1, last + 1) if classes[-k]})
    return found


def rhyme_rate(ends):
    """
    The share of lines that rhyme: some line at most two away ends on another character of the same rhyme class. (A line
    sung twice does not rhyme with itself.) `ends` comes from endings.

    >>> rhyme_rate([{('光', '江阳')}, {('灯', '中东')}, {('长', '江阳')}, {('长', '江阳')}])
    0.5
    """
    near = [ends[max(0, i - 2):i] + ends[i + 1:i + 3] for i in range(len(ends))]
    return sum(any(a != b and a[1] == b[1] for other in near[i] for a in end for b in other)
               for i, end in enumerate(ends)) / max(1, len(ends))


def distinct(texts, n):
    """Different runs of n characters in all texts, as a share of all runs (Li et al. 2016, arXiv 1510.03055)."""
    runs = [text[i:i + n] for text in texts for i in range(len(text) - n + 1)]
    return len(set(runs)) / max(1, len(runs))


def repeated_lines(songs):
    """The share of lines that stand earlier in the same song. `songs` are lists of lines."""
    return sum(len(lines) - len(set(lines)) for lines in songs) / max(1, sum(map(len, songs)))


def length_distance(lines, others):
    """How far the line lengths of one text are from another's, in characters: the earth mover's distance.

    >>> length_distance(['一二三', '一二三四五'], ['一二三四'])
    1.0
    """
    lengths = [np.bincount([len(line) for line in part], minlength=1) for part in (lines, others)]
    shares = [np.pad(count, (0, max(map(len, lengths)) - len(count))) / max(1, count.sum()) for count in lengths]
    return float(np.abs(np.cumsum(shares[0] - shares[1])).sum())


def longest_copy(text, source):
    """The longest run of characters of `text` that stands in `source` word for word."""
    best, begin = '', 0
    for end in range(1, len(text) + 1):  # text[begin:end] is the longest copied run that ends here
        while text[begin:end] not in source:
            begin += 1
        best = max(best, text[begin:end], key=len)
    return best


def figures(texts, real, source):
    """
    A dict of all figures for `texts`, completions or songs: line lengths are compared with those of the songs `real`, copies
    looked for in the text `source`. Needs pypinyin.
    """
    songs = [[line for line in text.split('\n') if line] for text in texts]
    ends = [endings([line for line in lines if letters(line)]) for lines in songs]
    copies = sorted((longest_copy(text, source) for text in texts), key=len)
    return {'distinct_2': distinct(texts, 2), 'distinct_4': distinct(texts, 4), 'repeated_lines': repeated_lines(songs),
            'line_length_distance': length_distance(sum(songs, []), [line for song in real for line in song.split('\n') if line]),
            'rhyme_rate': sum(rhyme_rate(e) * len(e) for e in ends) / max(1, sum(map(len, ends))),
            'copied_median': len(copies[len(copies) // 2]), 'copied_longest': len(copies[-1]), 'copied': copies[-1]}
