"""Names in run.json: an objective names its teacher by a fingerprint, which has two forms."""

from train.loop.store import _same_name

R, OTHER = 'a' * 16, 'b' * 16
NEW = f'model:v2-{"1" * 16}-{"2" * 16}-{R}'


def test_a_run_of_before_fingerprints_read_all_leaves_goes_on():
    assert _same_name(f'Distill() of model:{R} c0ffee', f'Distill() of {NEW} c0ffee')
    assert not _same_name(f'Distill() of model:{OTHER} c0ffee', f'Distill() of {NEW} c0ffee')
    assert not _same_name(f'Distill() of model:{R} c0ffee', f'Distill() of {NEW} other')
    assert not _same_name(f'Distill() of {NEW}', f'Distill() of {NEW} standing for c0ffee')


def test_a_teacher_in_another_format_is_the_same():
    half = f'model:v2-{"1" * 16}-{"3" * 16}-{R}'
    assert _same_name(f'Distill() of {NEW}', f'Distill() of {half}')
    assert not _same_name(f'of {NEW}', f'of model:v2-{"4" * 16}-{"5" * 16}-{R}')


def test_names_that_are_absent_or_hold_no_model():
    assert _same_name(None, None) and not _same_name(None, 'a') and not _same_name('a', None)
    assert _same_name('tsep 1', 'tsep 1') and not _same_name('tsep 1', 'tsep 2')
