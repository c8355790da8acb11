"""Extract what a text says as JSON that is sure to have the right form.

    pip install "phlite[constrained]"
    python extract_json.py [model]

The embedded model, which runs without an argument, knows nothing of ships: its values are nonsense, the form is right.
"""

import json
import sys

import phlite

TEXT = "The ferry Aurora left Tampere at 9:40 with 212 passengers, two of them dogs."

SCHEMA = {
    "type": "object",
    "properties": {
        "ship": {"type": "string", "maxLength": 20},
        "departure": {"type": "string", "pattern": "^([01]?[0-9]|2[0-3]):[0-5][0-9]$"},
        "passengers": {"type": "integer", "minimum": 0, "maximum": 5000},
        "animals": {"type": "array", "items": {"enum": ["dog", "cat", "other"]}, "maxItems": 3},
    },
    "required": ["ship", "departure", "passengers", "animals"],
    "additionalProperties": False,
}

llm = phlite.load(sys.argv[1] if len(sys.argv) > 1 else "haiku")
answer = llm.chat(
    f"Extract ship, departure, passengers and animals as JSON:\n{TEXT}",
    constraint=phlite.Constraint.json_schema(SCHEMA),
    temperature=0.0,
    max_tokens=200,
)
if answer.constraint_satisfied:
    print(json.dumps(answer.parse(), indent=2, ensure_ascii=False))
else:
    print("unfinished:", answer.text, file=sys.stderr)
    sys.exit(2)
