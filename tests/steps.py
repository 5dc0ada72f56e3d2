"""The steps, called with the settings of their recipes as keywords; the rest says how they run."""

from igmask.asked.recipes import Attribute, Evaluate, Index, Mask, Preflight, Prepare, Train
from igmask.asked.settings import Attribution
from igmask.steps import attribute, evaluate, index, mask, preflight, prepare, train


def _call(step, recipe):
    def call(*paths, **settings):
        named = {key: settings.pop(key) for key in recipe.__match_args__ if key in settings}
        if isinstance(named.get("attribution"), dict):
            named["attribution"] = Attribution(**named["attribution"])
        return step(*paths, recipe(**named), **settings)

    return call


def run_index(dataset, output, *, seed=0):
    index.index(output, Index(dataset, seed))


run_train = _call(train.train, Train)
run_preflight = _call(preflight.preflight, Preflight)
run_prepare = _call(prepare.prepare, Prepare)
run_attribute = _call(attribute.attribute, Attribute)
run_mask = _call(mask.mask, Mask)
_evaluate = _call(evaluate.evaluate, Evaluate)


def run_evaluate(*paths, **settings):
    """Without scores there are no controls."""
    return _evaluate(*paths, **({} if settings.get("scores") else {"controls": ()}) | settings)
