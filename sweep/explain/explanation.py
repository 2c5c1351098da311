"""What an explaining model says of pictures, as the `shap` library's own object: its plots and its slicing work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import shap
from numpy.typing import NDArray

from sweep.explain.overlays import overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Explanation(shap.Explanation):
    """Attributions of N pictures for J classes each.

    values: [N, H, W, 1, J]: a patch's attribution spread evenly over its pixels, one number for all colours, so that they sum to
    v(all) - v(empty). base_values: v(empty) [N, J]; data: what the model saw, uint8 [N, H, W, 3]; output_names: class names [N, J] (of a
    single picture [J]); instance_names: the pictures' names. error_std is None: the head is a function, it has no sampling error.
    """

    def __init__(
        self,
        maps: NDArray[np.floating],
        base_values: NDArray[np.floating],
        pixels: NDArray[np.uint8],
        class_names: Sequence[Sequence[str]],
        names: Sequence[str],
        compute_time: float | None = None,
    ) -> None:
        """maps: [N, J, g, g]; base_values: [N, J]; pixels: [N, H, W, 3]; class_names: N times J; names: N; compute_time: seconds."""
        self._grid = (int(maps.shape[2]), int(maps.shape[3]))
        # shap takes names [N, J] for two axes of outputs where the values' last two are of that shape, which [1, J] are of one picture.
        output_names = np.array(class_names, dtype=object)
        super().__init__(
            values=_spread(maps, pixels.shape[1], pixels.shape[2]),
            base_values=base_values,
            data=pixels,
            instance_names=list(names),
            output_names=output_names[0].tolist() if len(output_names) == 1 else output_names,
            compute_time=compute_time,
        )

    def __copy__(self) -> Explanation:
        """What slicing starts from: shap makes its own class of it, without what `maps` needs."""
        copied = super().__copy__()
        copied.__class__, copied._grid = Explanation, self._grid
        return copied

    @property
    def maps(self) -> NDArray[np.floating]:
        """The attributions of the patches: [N, J, g, g], of what is left after slicing; their sum is v(all) - v(empty)."""
        values = np.asarray(self.values)
        rows, columns = self._grid
        height, width = values.shape[-4] // rows, values.shape[-3] // columns
        inside = values[..., : rows * height, : columns * width, 0, :]
        blocks = inside.reshape(*inside.shape[:-3], rows, height, columns, width, inside.shape[-1])
        return np.moveaxis(blocks.sum(axis=(-4, -2)), -1, -3)

    def plot(self, show: bool = True, **options: Any) -> Figure:
        """Draw pictures and maps with `shap.image_plot`, which takes the options; returns the figure. show=False only draws."""
        import matplotlib.pyplot as plt

        shap.image_plot(self, show=show, **options)
        return plt.gcf()

    def overlay(self, index: int = 0, output: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Picture [H, W, 3] and mask [H, W] of one picture and class, for pytorch-grad-cam's `show_cam_on_image` (`overlays.overlay`)."""
        return overlay(np.asarray(self.data)[index], self.maps[index, output])


def _spread(maps: NDArray[np.floating], height: int, width: int) -> NDArray[np.float32]:
    """[N, J, g, g] -> [N, height, width, 1, J]; pixels that are in no patch get 0."""
    rows, columns = height // maps.shape[2], width // maps.shape[3]
    spread = maps.repeat(rows, axis=2).repeat(columns, axis=3) / (rows * columns)
    padded = np.pad(spread, ((0, 0), (0, 0), (0, height - spread.shape[2]), (0, width - spread.shape[3])))
    return np.moveaxis(padded, 1, -1)[:, :, :, None, :].astype(np.float32)
