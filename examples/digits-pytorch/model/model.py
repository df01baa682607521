"""What runs in the sandbox: the network's shape in code, its numbers from the state dict."""

from pathlib import Path

import torch


def network():
    """64 pixels in, one score for each digit out."""
    return torch.nn.Sequential(torch.nn.Linear(64, 24), torch.nn.ReLU(), torch.nn.Linear(24, 10))


class Model:
    """A small network behind one ``predict``; on a GPU where the version was given one."""

    def __init__(self, path):
        torch.set_num_threads(1)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.net = network()
        self.net.load_state_dict(
            torch.load(Path(path) / "weights.pt", map_location="cpu", weights_only=True)
        )
        self.net.eval().to(self.device)

    def predict(self, inputs):
        """Digits and probabilities of ``{"rows": [[64 numbers from 0 to 16], ...]}``."""
        rows = torch.tensor(inputs["rows"], dtype=torch.float32, device=self.device) / 16.0
        with torch.no_grad():
            shares = torch.softmax(self.net(rows), dim=1).cpu()
        return {"digits": shares.argmax(dim=1).tolist(), "probabilities": shares.tolist()}
