"""Train the example: a small PyTorch network that reads handwritten digits.

    python -m pip install -r requirements.txt
    python train.py out

``out/`` is then a model folder to push: the code and ``weights.pt``, the network's state dict.
Beside it lie ``rows.json``, digits that were held out of the training, and ``expected.json``, what
the same network answers for them in this process.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "model"))
from model import Model, network  # noqa: E402

ROWS_SENT = 10
EPOCHS = 150


def main() -> None:
    """Train, and write the model folder, the rows and the expected answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="model folder to write")
    out = parser.parse_args().out

    torch.manual_seed(0)
    data = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        data.data / 16.0, data.target, test_size=0.25, random_state=0, stratify=data.target
    )
    net = network()
    inputs = torch.tensor(train_x, dtype=torch.float32)
    labels = torch.tensor(train_y)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(EPOCHS):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()
        optimiser.step()

    out.mkdir(parents=True, exist_ok=True)
    if out.resolve() != HERE / "model":
        for name in ("appliance.toml", "model.py"):
            shutil.copyfile(HERE / "model" / name, out / name)
    torch.save(net.state_dict(), out / "weights.pt")
    rows = {"rows": (test_x[:ROWS_SENT] * 16.0).tolist()}
    (out.parent / "rows.json").write_text(json.dumps(rows) + "\n")
    expected = Model(out).predict(rows)
    (out.parent / "expected.json").write_text(json.dumps(expected) + "\n")
    with torch.no_grad():
        found = net(torch.tensor(test_x, dtype=torch.float32)).argmax(dim=1)
    accuracy = float((found == torch.tensor(test_y)).float().mean())
    print(f"trained on {len(train_x)} digits, accuracy on {len(test_x)} held-out: {accuracy:.3f}")


if __name__ == "__main__":
    main()
