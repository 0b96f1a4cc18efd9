"""Names in run.json: an objective names its teacher by a fingerprint, which has two forms."""

from train.loop.identity import same_name

R, OTHER = 'a' * 16, 'b' * 16
NEW = f'model:v2-{"1" * 16}-{"2" * 16}-{R}'


def test_a_run_of_before_fingerprints_read_all_leaves_goes_on():
    assert same_name(f'Distill() of model:{R} c0ffee', f'Distill() of {NEW} c0ffee')
    assert not same_name(f'Distill() of model:{OTHER} c0ffee', f'Distill() of {NEW} c0ffee')
    assert not same_name(f'Distill() of model:{R} c0ffee', f'Distill() of {NEW} other')
    assert not same_name(f'Distill() of {NEW}', f'Distill() of {NEW} standing for c0ffee')


def test_a_teacher_in_another_format_is_the_same():
    half = f'model:v2-{"1" * 16}-{"3" * 16}-{R}'
    assert same_name(f'Distill() of {NEW}', f'Distill() of {half}')
    assert not same_name(f'of {NEW}', f'of model:v2-{"4" * 16}-{"5" * 16}-{R}')


def test_names_that_are_absent_or_hold_no_model():
    assert same_name(None, None) and not same_name(None, 'a') and not same_name('a', None)
    assert same_name('tsep 1', 'tsep 1') and not same_name('tsep 1', 'tsep 2')
