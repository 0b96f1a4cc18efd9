"""Files of users as people write them: line separators in strings, byte order marks, encodings."""

import json

import pytest

from moe_jax.data import folder
from moe_jax.data.tasks.tables import read_rows

ROWS = [{'text': f'one{separator}two'} for separator in (
    '\u2028', '\u2029', '\x85', '\x0b', '\x0c', '\x1c', '\r', '\n')]


@pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'], ids=['plain', 'byte order mark'])
@pytest.mark.parametrize('end', ['\n', '\r\n'], ids=['LF', 'CRLF'])
@pytest.mark.parametrize('escape', [False, True])
def test_a_row_ends_at_a_line_feed_alone(tmp_path, mark, end, escape):
    path = tmp_path / 'rows.jsonl'
    lines = (json.dumps(row, ensure_ascii=escape) + end for row in ROWS)
    path.write_bytes(mark + ''.join(lines).encode())
    assert read_rows(path) == ROWS


def test_text_that_is_not_utf_8_is_named_with_its_byte(tmp_path):
    path = tmp_path / 'rows.jsonl'
    path.write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r'rows\.jsonl: not UTF-8 text \(byte 13'):
        read_rows(path)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / 'code').mkdir()
    (tmp_path / 'code/a.txt').write_bytes(b'\xef\xbb\xbfhello')
    assert [one.text for one in folder.documents(tmp_path, 'code')] == ['hello']
