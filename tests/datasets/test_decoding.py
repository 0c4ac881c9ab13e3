"""Bytes of text files: byte order marks, the option `data.encoding`, and one clear error."""

import codecs

import pytest

from upslope.datasets.decoding import decode_text, read_text
from upslope.errors import ConfigError, DataError

TEXT = "größe,label\r\n1,Käfer 日本\n"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_marked_text_is_decoded_without_an_option_and_with_it(mark, encoding, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(mark + TEXT.encode(encoding))
    assert read_text(path) == TEXT
    assert read_text(path, encoding) == TEXT
    if encoding != "utf-8":
        assert read_text(path, encoding[:6]) == TEXT


def test_other_encodings_are_named_or_refused_by_the_byte():
    data = "a,b\r\n1,größe\r\n2,x".encode("cp1252")
    assert decode_text(data, "t.csv", "cp1252") == "a,b\r\n1,größe\r\n2,x"
    message = (
        r"t\.csv to be text in UTF-8 but byte 0xf6 at offset 9, line 2, is not.*`data.encoding`"
        r".*in cp1252.* '1,größe'"
    )
    with pytest.raises(DataError, match=message):
        decode_text(data, "t.csv")
    with pytest.raises(DataError, match="text in ascii but byte 0xf6 at offset 9"):
        decode_text(data, "t.csv", "ascii")


def test_utf_16_without_a_mark_is_not_taken_for_letters():
    data = "a,größe\n".encode("utf-16-le")
    with pytest.raises(DataError, match=r"set `data.encoding` to utf-16-le or utf-16-be"):
        decode_text(data, "t.csv")
    with pytest.raises(DataError, match=r"character 2 is NUL.* set `data.encoding` to utf-16-le"):
        decode_text("a,b\n".encode("utf-16-le"), "t.csv")
    assert decode_text(data, "t.csv", "utf-16-le") == "a,größe\n"
    with pytest.raises(DataError, match="damaged, or not in utf-16"):
        decode_text(b"\0\0\0\0", "t.csv", "utf-16-le")


def test_an_option_that_cannot_be_right():
    with pytest.raises(DataError, match=r"byte order mark ef bb bf is that of utf-8"):
        decode_text(codecs.BOM_UTF8 + b"a", "t.csv", "cp1252")
    for name in ("latin-99", "rot13", "a\0"):
        with pytest.raises(
            ConfigError, match=r"`data.encoding` to be an encoding that Python knows"
        ):
            decode_text(b"a", "t.csv", name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"t\.csv but there is no such file\. Check the path"):
        read_text(tmp_path / "t.csv")


def test_text_in_utf_8_that_is_said_to_be_another_is_told(tmp_path):
    (tmp_path / "t.txt").write_bytes("Käfer, größe".encode())
    with pytest.warns(UserWarning, match="is read as cp1252, .* but is text in UTF-8 as well"):
        assert read_text(tmp_path / "t.txt", "cp1252") == "KÃ¤fer, grÃ¶ÃŸe"
    (tmp_path / "t.txt").write_bytes("Käfer, größe".encode("cp1252"))
    assert read_text(tmp_path / "t.txt", "cp1252") == "Käfer, größe"
