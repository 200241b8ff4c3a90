"""Networks whose weights were written, not trained: the circuit is known because we wrote it."""

from patchclamp.organisms.compiled.hand_induction import hand_induction as hand_induction
from patchclamp.organisms.compiled.hand_induction import hand_induction_task as hand_induction_task
from patchclamp.organisms.compiled.hand_induction import hand_induction_truth as hand_induction_truth
