"""
Text <-> token ids. Every kind of tokenizer becomes one Hugging Face `tokenizers` file, tokenizer.json, and that file is
all the rest of the code knows of it:

    characters  one token a character                             build_characters(songs)
    words       SentencePiece BPE with byte fallback              build_words(songs, vocab_size), from_sentencepiece(path)
    wordpiece   a BERT vocabulary, as uer/gpt2-*-chinese uses it  from_wordpiece('vocab.txt')
    bytes       GPT-2's byte-level BPE                            from_tiktoken(encoding), from_gpt2('vocab.json', 'merges.txt')

A song is its lines joined by a newline token, then one end-of-text token. Newlines are tokens in all four kinds.
"""
import io
import os
import tempfile

import numpy as np
from tokenizers import Regex, Tokenizer as HFTokenizer, decoders, models, normalizers, pre_tokenizers

END_OF_TEXT = '<|endoftext|>'
UNKNOWN = '<unk>'
NEWLINE = '\n'
UNSEEN, JOINS = 0xffffffff, 0xfffffffe  # in a table of ids: not looked at yet; part of a longer token


class Tokenizer:
    """
    Encodes and decodes by one `tokenizers.Tokenizer`, and knows the ids with a role of their own:
    eot_id ends a song; bos_id stands before its first token (eot_id itself, or [CLS] for wordpiece); unk_id stands for
    a character outside the vocabulary (None: there are none); banned_ids must never be sampled.
    """

    def __init__(self, hf):
        self.hf = hf
        self.hf.encode_special_tokens = True  # '<|endoftext|>' inside a lyric is text like any other
        model, vocab = hf.model, hf.get_vocab()
        self.vocab_size = max(vocab.values()) + 1
        self.kind = {models.WordLevel: 'characters', models.WordPiece: 'wordpiece', models.Unigram: 'words'}.get(
            type(model)) or ('words' if model.byte_fallback else 'bytes')
        self.eot_id = vocab.get(END_OF_TEXT, vocab.get('</s>'))
        if self.eot_id is None:
            raise ValueError(f'the tokenizer has no {END_OF_TEXT} token')
        self.bos_id = vocab['[CLS]'] if self.kind == 'wordpiece' else self.eot_id
        self.unk_id = None if self.kind == 'bytes' else vocab.get('[UNK]' if self.kind == 'wordpiece' else UNKNOWN)
        special = {i for i, token in hf.get_added_tokens_decoder().items() if token.special}
        # never sampled: special tokens, rows that stand for no text, single bytes (they could end in half a character)
        no_text = {'wordpiece': '[unused', 'words': '<0x'}.get(self.kind)
        silent = {i for token, i in vocab.items() if no_text and token.startswith(no_text)}
        self.banned_ids = sorted((special | silent | {self.unk_id} - {None}) - {self.eot_id})
        self.sentencepiece = None  # the processor that this tokenizer was made from; it encodes songs three times faster
        # A character that is a token by itself, whatever stands around it, is looked up here: the same ids, many times faster.
        self.table = None
        if self.kind == 'characters':  # all are
            self.table = np.full(0x110000, self.unk_id, dtype=np.uint32)
            for token, i in vocab.items():
                if len(token) == 1:
                    self.table[ord(token)] = i
        elif self.kind == 'wordpiece':  # Chinese characters, spaces, punctuation; found out as they come
            self.table = np.full(0x110000, UNSEEN, dtype=np.uint32)

    def encode_array(self, text):
        """Token ids of `text` as a uint32 array (T,). Unknown characters become unk_id."""
        if self.table is None:
            return np.array(self.hf.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        codes = np.frombuffer(text.encode('utf-32-le'), dtype=np.uint32)
        ids = self.table.take(codes)
        if self.kind == 'characters':
            return ids
        if (ids == UNSEEN).any():
            self._look_at(np.unique(codes[ids == UNSEEN]))
            ids = self.table[codes]
        joined = np.flatnonzero(np.diff(ids == JOINS, prepend=False, append=False))  # runs of letters: begin, end, begin, ...
        parts, done = [], 0
        for begin, end in zip(joined[::2], joined[1::2]):
            parts += [ids[done:begin], self.hf.encode(text[begin:end], add_special_tokens=False).ids]
            done = end
        return np.concatenate([*parts, ids[done:]]).astype(np.uint32) if parts else ids

    def _look_at(self, codes):
        """Enter characters into the table: between two letters, one that stands alone leaves each of them a word."""
        for code, e in zip(codes, self.hf.encode_batch([f'a{chr(code)}a' for code in codes], add_special_tokens=False)):
            self.table[code] = e.ids[1] if len(e.ids) == 3 and e.ids[0] == e.ids[2] else JOINS

    def encode(self, text):
        """Token ids of `text`, a list of ints; nothing is added in front or behind."""
        return self.encode_array(text).tolist()

    def encode_songs(self, songs):
        """One uint32 array for each song: [bos, where it differs from end of text,] its tokens, end of text."""
        if self.kind == 'characters':  # all at once: each song's end of text takes the place of a line break
            ends = np.cumsum([len(song) + 1 for song in songs], dtype=np.int64)
            ids = self.encode_array(NEWLINE.join([*songs, '']))
            ids[ends - 1] = self.eot_id
            return [ids[begin:end] for begin, end in zip([0, *ends[:-1]], ends)]
        front = [] if self.bos_id == self.eot_id else [self.bos_id]
        if self.table is not None:
            coded = map(self.encode_array, songs)
        elif self.sentencepiece:
            coded = self.sentencepiece.encode(list(songs))
        else:
            coded = (e.ids for e in self.hf.encode_batch_fast(list(songs), add_special_tokens=False))
        return [np.concatenate((front, ids, [self.eot_id]), dtype=np.uint32, casting='unsafe') for ids in coded]

    def decode(self, ids):
        """The text of `ids`. End of text and [CLS] are left out; an unknown character reads <unk> or [UNK]."""
        return self.hf.decode([i for i in ids if i not in (self.eot_id, self.bos_id)], skip_special_tokens=False)

    def unknown(self, text):
        """The pieces of `text` (mostly single characters) that become unk_id, in their order."""
        if self.kind == 'characters':
            return [c for c in text if self.table[ord(c)] == self.unk_id]
        coded = self.hf.encode(text, add_special_tokens=False)
        return [text[a:b] for i, (a, b) in zip(coded.ids, coded.offsets) if i == self.unk_id]

    def save(self, path):
        """Write tokenizer.json."""
        from files import atomic
        with atomic(path) as f:
            f.write(self.hf.to_str(pretty=True))


def load(path):
    """The Tokenizer in a tokenizer.json. Raises ValueError when the file is none, or has no end-of-text token."""
    with open(path, 'rb') as f:
        data = f.read()
    try:
        return Tokenizer(HFTokenizer.from_str(data.decode('utf-8')))
    except Exception as error:  # the Rust library raises bare Exceptions
        raise ValueError(f'{path} is no tokenizer file of ours: {error}') from error


def build_characters(songs):
    """A character tokenizer of all characters in `songs` (texts of the training split alone), in code point order."""
    tokens = [END_OF_TEXT, UNKNOWN, *sorted(set(NEWLINE).union(*songs))]
    return from_characters({token: i for i, token in enumerate(tokens)})


def from_characters(ids):
    """
    A character tokenizer of a {character: id} dict, such as nanoGPT's meta.pkl holds. Where end of text and <unk> are
    missing, they get the next two ids.
    """
    vocab = dict(ids)
    for token in (END_OF_TEXT, UNKNOWN):
        vocab.setdefault(token, len(vocab))
    hf = HFTokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    hf.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated')
    hf.decoder = decoders.Fuse()
    hf.add_special_tokens([END_OF_TEXT, UNKNOWN])
    return Tokenizer(hf)


def build_words(songs, vocab_size=30000):
    """
    Train a SentencePiece BPE of `vocab_size` pieces on `songs` (training split alone) and convert it. The text stays as
    it is (identity normalisation, no dummy prefix), newline is a piece of its own, a rare character falls back to its
    UTF-8 bytes. Small corpora get fewer pieces: a learned piece for every 100 characters of text at most, since a
    piece seen a handful of times has no embedding worth the name. Returns (Tokenizer, the .model file's bytes).
    """
    import sentencepiece
    lines = [line for song in songs for line in song.split(NEWLINE) if line]
    characters = set(''.join(lines))
    least = 256 + 3 + len(characters)
    carries = least + sum(map(len, lines)) // 100
    if vocab_size < least:
        raise SystemExit(f'vocab_size={vocab_size:,} is too small: the bytes and the characters of this corpus alone are {least:,}.')
    if carries < vocab_size:
        print(f'{vocab_size:,} pieces were asked for; {sum(map(len, lines)):,} characters carry {carries:,}')
    if vocab_size < 256 + 3 + len(characters):
        raise SystemExit(f'{vocab_size:,} pieces are too few: 256 bytes, 3 special pieces and {len(characters):,} characters '
                         'take one each.')
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, model_type='bpe', vocab_size=min(vocab_size, carries),
        normalization_rule_name='identity', add_dummy_prefix=False, remove_extra_whitespaces=False,
        user_defined_symbols=[NEWLINE], byte_fallback=True, character_coverage=0.9999, max_sentence_length=1 << 20,
        hard_vocab_limit=False, bos_id=-1, pad_id=-1, unk_id=0, unk_piece=UNKNOWN, eos_id=1, eos_piece=END_OF_TEXT,
        num_threads=os.cpu_count(), minloglevel=2)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'words.model')
        with open(path, 'wb') as f:
            f.write(out.getvalue())
        return from_sentencepiece(path), out.getvalue()


def from_sentencepiece(path):
    """
    Convert a SentencePiece .model file (BPE or unigram); ids stay SentencePiece's. A model without a newline piece or
    an end-of-text piece gets them behind its last id. Raises ValueError on a file that is none.
    """
    import sentencepiece
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        with open(path, 'rb') as f:
            proto.ParseFromString(f.read())
    except DecodeError as error:
        raise ValueError(f'{path} is no SentencePiece model: {error}') from error
    pieces, kind = proto.pieces, type(proto).SentencePiece
    vocab = {p.piece: i for i, p in enumerate(pieces)}
    control = [p.piece for p in pieces if p.type in (kind.CONTROL, kind.UNKNOWN)]
    unk = next(i for i, p in enumerate(pieces) if p.type == kind.UNKNOWN)
    if proto.trainer_spec.model_type == proto.trainer_spec.BPE:
        whole = {p.piece for p in pieces if p.type not in (kind.CONTROL, kind.UNKNOWN, kind.BYTE)}
        merges = [(vocab[p.piece], vocab[p.piece[:k]], vocab[p.piece[k:]]) for p in pieces if p.type == kind.NORMAL
                  for k in range(1, len(p.piece)) if p.piece[:k] in whole and p.piece[k:] in whole]
        merges = [(pieces[a].piece, pieces[b].piece) for _, a, b in sorted(merges)]  # a lower id is merged earlier
        model = models.BPE(vocab, merges, unk_token=pieces[unk].piece, fuse_unk=True,
                           byte_fallback=proto.trainer_spec.byte_fallback)
    else:
        model = models.Unigram([(p.piece, p.score) for p in pieces], unk, byte_fallback=proto.trainer_spec.byte_fallback)
    hf = HFTokenizer(model)
    spec, steps = proto.normalizer_spec, []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    steps.append(normalizers.Replace(' ', '▁'))
    if spec.add_dummy_prefix:  # SentencePiece's leading ▁, here at the start of every line
        steps += [normalizers.Prepend('▁'), normalizers.Replace(NEWLINE, NEWLINE + '▁')]
    hf.normalizer = normalizers.Sequence(steps)
    hf.pre_tokenizer = pre_tokenizers.Split(NEWLINE, 'isolated')  # no piece spans lines; repeated lines are cached
    unprefix = [decoders.Replace(NEWLINE + ' ', NEWLINE), decoders.Strip(' ', 1, 0)] if spec.add_dummy_prefix else []
    # bytes first: where the vocabulary lacks ▁, a space is the bytes of ▁
    hf.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace('▁', ' '), *unprefix])
    hf.add_special_tokens([*control, *({END_OF_TEXT} - vocab.keys())])
    if NEWLINE not in vocab:
        hf.add_tokens([NEWLINE])
    built = Tokenizer(hf)
    if NEWLINE in vocab and END_OF_TEXT in vocab and not spec.add_dummy_prefix:  # then its ids are ours
        built.sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    return built


def from_wordpiece(path, lowercase=True):
    """
    A BERT vocabulary file (one token a line) as the uer/gpt2-*-chinese models use it. BERT's own tokenizer drops
    newlines and spaces; here newline, end of text and space take the rows of the first three [unusedN] tokens.
    Letters are lower-cased and stripped of accents, as in pre-training.
    """
    with open(path, encoding='utf-8') as f:
        tokens = f.read().rstrip('\n').split('\n')
    unused = [i for i, token in enumerate(tokens) if token.startswith('[unused')]
    if len(unused) < 3 or '[CLS]' not in tokens:
        raise ValueError(f'{path} is no BERT vocabulary: it lacks [CLS] or three [unusedN] rows')
    for i, token in zip(unused, (NEWLINE, END_OF_TEXT, ' ')):
        tokens[i] = token
    hf = HFTokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token='[UNK]', max_input_chars_per_word=100))
    hf.normalizer = normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False, lowercase=lowercase)
    han = '[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f]'  # as BERT has it
    hf.pre_tokenizer = pre_tokenizers.Sequence([  # BERT's splitting, but white space is kept
        pre_tokenizers.Split(Regex(r'\s|' + han), 'isolated'),
        pre_tokenizers.Punctuation('isolated')])
    hf.decoder = decoders.Sequence([decoders.Replace(Regex('^##'), ''), decoders.Fuse()])
    hf.add_special_tokens([t for t in ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', END_OF_TEXT) if t in tokens])
    return Tokenizer(hf)


def from_tiktoken(encoding):
    """A tiktoken encoding, tiktoken.get_encoding('gpt2') say, as a Tokenizer with the same ids."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that GPT-2 writes as themselves
    hidden = [b for b in range(256) if b not in visible]  # the others stand as the letters from 256 on
    letter = {**{b: chr(b) for b in visible}, **{b: chr(256 + i) for i, b in enumerate(hidden)}}
    ranks, merges = encoding._mergeable_ranks, []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i:i + 1] for i in range(len(token))]
        while len(parts) > 2:  # the last merge that makes this token: all earlier ones have lower ranks
            pairs = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:])]
            i = pairs.index(min(pairs))
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append(tuple(''.join(letter[b] for b in part) for part in parts))
    vocab = {''.join(letter[b] for b in token): rank for token, rank in ranks.items()}
    return from_gpt2({**vocab, END_OF_TEXT: encoding.eot_token}, merges)


def from_gpt2(vocab, merges):
    """GPT-2's byte-level BPE from vocab.json and merges.txt (paths), or from a dict and a list of pairs."""
    model = models.BPE.from_file(vocab, merges) if isinstance(vocab, str) else models.BPE(vocab, merges)
    hf = HFTokenizer(model)
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens([END_OF_TEXT])
    return Tokenizer(hf)
