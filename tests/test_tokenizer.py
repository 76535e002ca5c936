"""Text to ids and back, for every kind of tokenizer."""
import json
import random

import pytest
from hypothesis import given, strategies as st

import tokenizer as tokenizers
from conftest import SONGS

NASTY = ['', '\n', '\n\n\n', ' ', '  two  spaces  ', '\ttab\r\nCRLF', '\0', '\u3000全角', 'e\u0301é', '👩\u200d👩\u200d👧', '🎵风𠮷',
         '<unk>', '<|endoftext|>', '[CLS]', '[UNK]##', '</s>', '▁', '<0x0A>', '##', '\ufeff', '\ufffd', '\u2028', '\x7f\x85',
         'ＡＢ', '繁體字與简体字', "it's", 'a' * 300, '，。！？…—「」']
ALPHABET = ' \n\t\r\0a中文字é\u0301👧\u200d▁<>|#[]endoftxunkCLS0A\ufffd\u3000'
TEXTS = st.text(ALPHABET, max_size=40)
NASTY_CHARACTERS = tokenizers.build_characters([*NASTY, ALPHABET])


# --- characters -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('text', NASTY)
def test_characters_give_nasty_strings_back_exactly(text):
    t = NASTY_CHARACTERS
    ids = t.encode(text)
    assert t.decode(ids) == text and len(ids) == len(text) and t.unknown(text) == []


@given(TEXTS)
def test_characters_give_any_string_back_exactly(text):
    assert NASTY_CHARACTERS.decode(NASTY_CHARACTERS.encode(text)) == text


@given(st.text('纸鹤停\n 没见过👧\0<unk>\ud7ff'))
def test_the_look_up_table_gives_the_ids_of_the_tokenizer_file(text):
    t = tokenizers.build_characters(SONGS)
    assert t.encode(text) == t.hf.encode(text, add_special_tokens=False).ids


def test_an_unknown_character_becomes_unk_and_is_never_dropped(characters):
    text = '纸鼎鹤👧停'
    ids = characters.encode(text)
    assert len(ids) == 5 and [i == characters.unk_id for i in ids] == [False, True, False, True, False]
    assert characters.decode(ids) == '纸<unk>鹤<unk>停'
    assert characters.unknown(text) == ['鼎', '👧']


def test_unk_is_never_sampled_and_end_of_text_may_be(characters):
    assert characters.unk_id in characters.banned_ids and characters.eot_id not in characters.banned_ids
    assert characters.bos_id == characters.eot_id


def test_end_of_text_written_in_a_lyric_is_text(characters):
    t = tokenizers.build_characters(['<|endoftext|>唱'])
    ids = t.encode('唱<|endoftext|>')
    assert len(ids) == 14 and t.eot_id not in ids and t.decode(ids) == '唱<|endoftext|>'


def test_a_song_is_its_text_and_one_end_of_text(characters):
    first, second = characters.encode_songs(SONGS[:2])
    assert first.tolist() == characters.encode(SONGS[0]) + [characters.eot_id]
    assert characters.decode(second) == SONGS[1], 'end of text is left out, every line break is there'


def test_the_vocabulary_is_the_characters_it_saw_in_the_same_order_every_time():
    t = tokenizers.build_characters(['乙甲', '丙'])
    assert t.vocab_size == 6 and t.decode(range(6)) == '<unk>\n丙乙甲'
    assert t.hf.to_str() == tokenizers.build_characters(['丙甲', '乙', '甲']).hf.to_str()
    assert tokenizers.build_characters(['无换行']).encode('\n') != [1], 'a newline has its place whatever the songs hold'


def test_a_saved_tokenizer_loads_as_the_same(characters, tmp_path):
    path = str(tmp_path / 'tokenizer.json')
    characters.save(path)
    loaded = tokenizers.load(path)
    for name in ('kind', 'vocab_size', 'eot_id', 'bos_id', 'unk_id', 'banned_ids'):
        assert getattr(loaded, name) == getattr(characters, name)
    assert loaded.encode('纸鼎鹤\n') == characters.encode('纸鼎鹤\n')


@pytest.mark.parametrize('content', ['', '{', '{}', '[1]', 'null', '{"model": {"type": "WordLevel"}}'])
def test_a_file_that_is_no_tokenizer_raises_valueerror_with_its_name(tmp_path, content):
    path = tmp_path / 'tokenizer.json'
    path.write_text(content, encoding='utf-8')
    with pytest.raises(ValueError, match='tokenizer.json is no tokenizer file'):
        tokenizers.load(str(path))


def test_a_tokenizer_without_end_of_text_raises_valueerror(tmp_path, characters):
    content = json.loads(characters.hf.to_str())
    content['added_tokens'] = [t for t in content['added_tokens'] if t['content'] == '<unk>']
    del content['model']['vocab']['<|endoftext|>']
    path = tmp_path / 'tokenizer.json'
    path.write_text(json.dumps(content), encoding='utf-8')
    with pytest.raises(ValueError, match='endoftext'):
        tokenizers.load(str(path))


# --- words ------------------------------------------------------------------------------------------------------------

def babble(count, seed):
    """Lines of few letters: pieces overlap there in many ways, so that the order of merges matters."""
    letter = random.Random(seed).choices
    return [''.join(letter('aab纸鹤鹤 ', k=20)) for _ in range(count)]


@pytest.fixture(scope='module')
def words():
    """A small SentencePiece BPE, converted, and SentencePiece's own processor of it."""
    import sentencepiece
    t, model = tokenizers.build_words(SONGS * 20 + babble(300, 0), vocab_size=700)
    return t, sentencepiece.SentencePieceProcessor(model_proto=model)


def test_word_ids_are_those_of_sentencepiece(words):
    t, own = words
    for text in [*SONGS, *NASTY, *babble(100, 1), '纸a 鼎  鹤鹤\n 纸']:
        if text not in ('\0', '<unk>', '</s>', '<|endoftext|>', '<0x0A>'):  # symbols of SentencePiece's own, tested below
            assert t.encode(text) == own.encode(text), repr(text)


@pytest.mark.parametrize('text', NASTY)
def test_words_give_nasty_strings_back_exactly(words, text):
    t, _ = words
    expected = text.replace('▁', ' ')  # SentencePiece writes the space so, and cannot tell the two apart
    assert t.decode(t.encode(text)) == expected


@given(text=TEXTS)
def test_words_give_any_string_back_exactly(words, text):
    t, _ = words
    assert t.decode(t.encode(text)) == text.replace('▁', ' ')


def test_words_know_every_character_by_its_bytes_and_never_sample_half_of_one(words):
    t, _ = words
    ids = t.encode('鼎')
    assert len(ids) == 3 and t.unknown('鼎') == [] and set(ids) <= set(t.banned_ids)
    assert t.unk_id in t.banned_ids and t.eot_id not in t.banned_ids


def test_no_word_spans_two_lines(words):
    t, _ = words
    newline = t.hf.token_to_id('\n')
    assert t.encode('窗台上\n等一阵') == t.encode('窗台上') + [newline] + t.encode('等一阵')
    assert all('\n' not in t.hf.id_to_token(i) for i in range(t.vocab_size) if i != newline)


def test_words_learn_real_words_and_a_song_keeps_its_line_breaks(words):
    """The predecessor's SentencePiece turned every newline into a space."""
    t, _ = words
    ids = t.encode_songs(SONGS[:1])[0]
    assert len(ids) < len(SONGS[0]) and t.decode(ids) == SONGS[0] and ids[-1] == t.eot_id


def test_saved_words_load_as_the_same(words, tmp_path):
    t, _ = words
    t.save(str(tmp_path / 'tokenizer.json'))
    loaded = tokenizers.load(str(tmp_path / 'tokenizer.json'))
    assert [loaded.encode(s) for s in NASTY + SONGS] == [t.encode(s) for s in NASTY + SONGS]
    assert loaded.banned_ids == t.banned_ids and loaded.kind == t.kind == 'words'


def test_a_file_that_is_no_sentencepiece_model_raises_valueerror(tmp_path):
    path = tmp_path / 'a.model'
    path.write_bytes(b'\xff\xff nothing of the kind')
    with pytest.raises(ValueError, match='no SentencePiece model'):
        tokenizers.from_sentencepiece(str(path))


@given(text=TEXTS)
def test_songs_that_sentencepiece_encodes_get_the_ids_of_the_tokenizer_file(words, text):
    t, _ = words
    assert t.encode_songs([text])[0].tolist() == [*t.hf.encode(text, add_special_tokens=False).ids, t.eot_id]


@pytest.mark.parametrize('text', NASTY)
def test_nasty_songs_too(words, text):
    test_songs_that_sentencepiece_encodes_get_the_ids_of_the_tokenizer_file.hypothesis.inner_test(words, text)


# --- wordpiece --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
    """A made-up BERT vocabulary."""
    tokens = ['[PAD]', '[unused1]', '[unused2]', '[unused3]', '[unused4]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '，', '!', '#',
              '<', '|', '>', '[', ']', *dict.fromkeys(''.join(SONGS).replace('\n', '')), *'abcdefghijklmnopqrstuvwxyz',
              *('##' + c for c in 'abcdefghijklmnopqrstuvwxyz'), 'rain', '##ing', '##字']
    path = tmp_path_factory.mktemp('bert') / 'vocab.txt'
    path.write_text('\n'.join(tokens) + '\n', encoding='utf-8')
    return tokenizers.from_wordpiece(str(path))


@pytest.mark.parametrize('text', [*SONGS, '', '\n', ' ', 'raining', 'rain ing\nrain', '  two  spaces  ', '\n\n纸\n', '纸rain鹤',
                                  'rain，纸!', '## #', '<|endoftext|>', '[CLS]'.lower()])
def test_wordpiece_gives_newlines_spaces_and_pieces_back_exactly(pieces, text):
    """BERT's own tokenizer drops newlines and spaces, and its decoder puts spaces between Chinese characters."""
    assert pieces.decode(pieces.encode(text)) == text


@given(text=st.text(st.sampled_from('纸鹤 \n\tab\u0301é，!#\u3000ＡΣ한ﬁ\u200b𠮷々１\u0e33[') | st.characters(), max_size=20))
def test_wordpiece_looks_characters_up_and_gets_the_ids_of_the_tokenizer_file(pieces, text):
    if not any('\ud800' <= c <= '\udfff' for c in text):
        assert pieces.encode(text) == pieces.hf.encode(text, add_special_tokens=False).ids


def test_wordpiece_seats_newline_end_of_text_and_space_in_unused_rows(pieces):
    at = pieces.hf.token_to_id
    assert (at('\n'), pieces.eot_id, at(' ')) == (1, 2, 3)
    assert pieces.encode('纸 鹤\n停') == [at('纸'), 3, at('鹤'), 1, at('停')], 'nothing is added in front or behind'
    assert pieces.bos_id == at('[CLS]') and pieces.kind == 'wordpiece'


def test_wordpiece_cuts_words_into_pieces_as_bert_does(pieces):
    at = pieces.hf.token_to_id
    assert pieces.encode('Raining') == [at('rain'), at('##ing')]
    assert pieces.encode('raïn') == [at('rain')], 'accents go, as in pre-training'


def test_wordpiece_never_drops_what_it_does_not_know(pieces):
    ids = pieces.encode('纸鼎鹤👧')
    assert len(ids) == 4 and ids.count(pieces.unk_id) == 2
    assert pieces.unknown('纸鼎鹤👧') == ['鼎', '👧']


def test_wordpiece_never_samples_rows_that_stand_for_no_text(pieces):
    at = pieces.hf.token_to_id
    assert {at(t) for t in ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '[unused4]')} <= set(pieces.banned_ids)
    assert not {1, 2, 3, at('纸'), at('##ing')} & set(pieces.banned_ids)


def test_wordpiece_songs_begin_with_cls_and_end_with_end_of_text(pieces):
    ids = pieces.encode_songs(SONGS[:1])[0].tolist()
    assert ids == [pieces.bos_id, *pieces.encode(SONGS[0]), pieces.eot_id] and pieces.decode(ids) == SONGS[0]


def test_special_tokens_written_in_a_lyric_are_text_for_every_kind(words, pieces, characters):
    """A lyric that says <|endoftext|> must not end the song it stands in."""
    for t in (words[0], pieces, characters):
        for text in ('<|endoftext|>', '[CLS]', '[SEP]', '<unk>', '</s>', '<0x0A>'):
            ids = t.encode(text)
            assert t.eot_id not in ids and (t.bos_id not in ids), (t.kind, text, ids)


@pytest.mark.parametrize('tokens', [['[CLS]', '[unused1]'], ['[unused1]', '[unused2]', '[unused3]', 'a'], ['']])
def test_a_file_that_is_no_bert_vocabulary_raises_valueerror(tmp_path, tokens):
    path = tmp_path / 'vocab.txt'
    path.write_text('\n'.join(tokens), encoding='utf-8')
    with pytest.raises(ValueError, match='no BERT vocabulary'):
        tokenizers.from_wordpiece(str(path))


# --- bytes ------------------------------------------------------------------------------------------------------------

@given(TEXTS)
def test_bytes_give_any_string_back_exactly(text):
    letters = tokenizers.from_gpt2({c: i for i, c in enumerate([*byte_letters(), '<|endoftext|>'])}, [])
    ids = letters.encode(text)
    assert len(ids) == len(text.encode()) and letters.decode(ids) == text and letters.unknown(text) == []


def byte_letters():
    from tokenizers.pre_tokenizers import ByteLevel
    return sorted(ByteLevel.alphabet())
