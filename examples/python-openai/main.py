# A conversation of OpenAI's Python client, kept by Colloquy: only the base URL is another one.
#
#   npm start                                                     in one shell
#   python3 -m venv .venv && .venv/bin/pip install openai
#   COLLOQUY_URL=http://127.0.0.1:3000 .venv/bin/python examples/python-openai/main.py
import os

from openai import NotFoundError, OpenAI

url = os.environ.get("COLLOQUY_URL", "http://127.0.0.1:3000")
client = OpenAI(base_url=f"{url}/openai/v1", api_key=os.environ.get("COLLOQUY_API_KEY", "none"))

conversation = client.conversations.create(metadata={"example": "python-openai"})
# The client wants a name; the service knows its own model by it, or passes it on to the provider.
MODEL = os.environ.get("MODEL", "gpt-5-mini")
first = client.responses.create(model=MODEL, conversation=conversation.id, input="What is React?")
print(first.output_text)

with client.responses.stream(model=MODEL, conversation=conversation.id, input="And Vue?") as stream:
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="")
    second = stream.get_final_response()
print()

branch = client.responses.create(model=MODEL, previous_response_id=first.id, input="And Svelte?")
print(branch.output_text)

items = list(client.conversations.items.list(conversation.id, order="asc", limit=2))
print(f"{conversation.id} has {len(items)} items; the last response is {second.status}")

assert client.responses.retrieve(second.id).output_text == second.output_text
assert [item.id for item in client.responses.input_items.list(second.id)][0] == items[2].id
client.conversations.items.delete(items[-1].id, conversation_id=conversation.id)
client.conversations.delete(conversation.id)
try:
    client.conversations.retrieve(conversation.id)
except NotFoundError as error:
    print(f"deleted: {error.code}")
