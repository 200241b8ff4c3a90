"""Editing: changes to weights as reversible data.

edit = pc.editing.orthogonalise(model, direction)
with edit.applied(model):
    model.generate("...")
edit.merge(model, "edited-checkpoint/")
"""

from patchclamp.editing.edit import Change as Change
from patchclamp.editing.edit import Edit as Edit
from patchclamp.editing.edit import EditError as EditError
from patchclamp.editing.edit import load as load
from patchclamp.editing.edit import untie as untie
from patchclamp.editing.orthogonalise import orthogonalise as orthogonalise
