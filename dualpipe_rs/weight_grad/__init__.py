"""The cut of a backward B into I (the inputs' gradient, now) and W (the parameters' gradient, later).

`store.py` keeps one rank's waiting W's, and has `WeightGradStore`, the class that a user's own autograd
Functions talk to, after the interface of DeepSeek's DualPipe. `modules.py` makes ordinary modules cut
themselves, by the autograd Function of `cut.py` and the formulas of `layers.py`.

It is not a scheduler (when a W runs is the executor's affair) and it changes no numbers: after I and W,
`.grad` holds what a whole backward leaves there, up to the order of summation. What a W needs (its layer's
input, the gradient of its output) must stay as it is until that W has run; on a GPU, W belongs on I's stream.
"""

from dualpipe_rs.weight_grad.modules import bind, split_weight_grad, unbind
from dualpipe_rs.weight_grad.store import Store, WeightGradStore, current, set_current

__all__ = ["Store", "WeightGradStore", "bind", "current", "set_current", "split_weight_grad", "unbind"]
