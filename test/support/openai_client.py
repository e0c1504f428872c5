"""What the official Python client of OpenAI's API must be able to do with the service, beyond the example."""

import json
import os
import sys

from openai import AuthenticationError, BadRequestError, InternalServerError, NotFoundError, OpenAI
from pydantic import BaseModel

base_url = f"{os.environ['COLLOQUY_URL']}/openai/v1"
client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
MODEL = "m"
SEARCH = {"type": "function", "name": "search", "parameters": {"type": "object"}, "strict": False}


def refused(error, action):
    try:
        action()
    except error as found:
        return found
    raise AssertionError(f"no {error.__name__}")


# Tools, in one call and in several, with both results in one request.
asked = client.responses.create(model=MODEL, input="find both", tools=[SEARCH])
calls = [item for item in asked.output if item.type == "function_call"]
assert [call.name for call in calls] == ["search", "search"], asked.output
done = client.responses.create(
    model=MODEL,
    previous_response_id=asked.id,
    input=[{"type": "function_call_output", "call_id": call.call_id, "output": "found"} for call in calls],
    tools=[SEARCH],
)
assert done.output_text == "Found."

# Structured output.
class Answer(BaseModel):
    number: int


parsed = client.responses.parse(model=MODEL, input="a number", text_format=Answer)
assert parsed.output_parsed == Answer(number=4)

# A stream: every event is one that the client has a class for, in order.
with client.responses.create(model=MODEL, input="tell me", stream=True) as stream:
    events = list(stream)
assert all(type(event).__name__ != "dict" for event in events)
assert [event.sequence_number for event in events] == sorted({event.sequence_number for event in events})
assert events[-1].type == "response.completed"
resumed = list(client.responses.retrieve(events[-1].response.id, stream=True, starting_after=3))
assert "".join(event.delta for event in resumed if event.type == "response.output_text.delta") == "A story."

# Nothing is kept.
forgotten = client.responses.create(model=MODEL, input="forget", store=False)
assert refused(NotFoundError, lambda: client.responses.retrieve(forgotten.id)).status_code == 404

# In the background, and cancelled.
conversation = client.conversations.create()
running = client.responses.create(model=MODEL, conversation=conversation.id, input="slowly", background=True)
assert running.status == "in_progress"
locked = refused(
    BadRequestError,
    lambda: client.responses.create(model=MODEL, conversation=conversation.id, input="me too"),
)
assert locked.code == "conversation_locked", locked
assert client.responses.cancel(running.id).status == "cancelled"

# Errors are of the client's classes.
assert refused(BadRequestError, lambda: client.responses.create(model=MODEL, input="x", tools=[{"type": "web_search"}])).code == "unsupported_parameter"
assert "GPU lost" in str(refused(InternalServerError, lambda: client.responses.create(model=MODEL, input="fail")))
if "COLLOQUY_LOCKED_URL" in os.environ:
    locked_client = OpenAI(base_url=f"{os.environ['COLLOQUY_LOCKED_URL']}/openai/v1", api_key="wrong", max_retries=0)
    assert refused(AuthenticationError, locked_client.conversations.create).code == "invalid_api_key"

# Chat completions, streamed with usage.
chunks = list(
    client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "chat"}],
        stream=True,
        stream_options={"include_usage": True},
        store=True,
        metadata={"session_id": "python"},
    )
)
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Chatted."
assert chunks[-1].usage.prompt_tokens == 10
json.dump({"done": True}, sys.stdout)
