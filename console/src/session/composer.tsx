import { useRef, useState } from 'preact/hooks';
import { focusOn, useKeys } from '../keys.js';
import { attempt } from '../ui/announce.js';
import { type SessionStore } from './session-store.js';

type Asked = Parameters<SessionStore['reply']['ask']>[0];

/** Where one speaks in a session. */
export function Composer({ store }: { store: SessionStore }) {
  const text = useRef<HTMLTextAreaElement>(null);
  const options = useRef<HTMLFormElement>(null);
  const [fault, setFault] = useState('');
  const isWriting = store.reply.current.value !== undefined;
  useKeys({
    c: () => {
      focusOn('#composer');
    },
  });
  const send = async (): Promise<void> => {
    const field = text.current;
    const asked = optionsIn(options.current);
    if (!field || field.value.trim() === '' || isWriting) return;
    setFault(typeof asked === 'string' ? asked : '');
    if (typeof asked === 'string') return;
    const message = field.value;
    field.value = '';
    const isDone = await attempt(() => store.reply.ask({ message, ...asked }));
    // What was refused is not lost.
    if (!isDone && field.value === '') field.value = message;
  };
  return (
    <form
      ref={options}
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        void send();
      }}
    >
      <details>
        <summary>Model, instructions, tools</summary>
        <label>
          <span>Model (that of the settings unless given)</span>
          <input name="model" spellcheck={false} />
        </label>
        <label>
          <span>Instructions</span>
          <textarea name="instructions" rows={2} dir="auto" />
        </label>
        <label>
          <span>Tools, as a JSON list of name, description, parameters and approval</span>
          <textarea
            name="tools"
            rows={3}
            spellcheck={false}
            placeholder='[{"name": "weather", "parameters": {"type": "object"}, "approval": "required"}]'
          />
        </label>
      </details>
      {fault !== '' && <p role="alert">{fault}</p>}
      <div class="send">
        <textarea
          id="composer"
          ref={text}
          rows={2}
          dir="auto"
          aria-label="Message"
          placeholder="Say something. Enter sends, Shift+Enter begins a line."
          onKeyDown={(event) => {
            if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
            event.preventDefault();
            void send();
          }}
        />
        {isWriting ? (
          <button type="button" onClick={() => void attempt(() => store.reply.cancel())}>
            Cancel
          </button>
        ) : (
          <button type="submit" class="primary">
            Send
          </button>
        )}
      </div>
    </form>
  );
}

/** What the fields ask of the model; a sentence when that cannot be read. */
function optionsIn(form: HTMLFormElement | null): Omit<Asked, 'message'> | string {
  const fields = new FormData(form ?? undefined);
  const read = (name: string): string => (fields.get(name) as string | null)?.trim() ?? '';
  const tools = read('tools');
  try {
    return {
      ...(read('model') !== '' && { model: read('model') }),
      ...(read('instructions') !== '' && { instructions: read('instructions') }),
      ...(tools !== '' && { tools: JSON.parse(tools) as NonNullable<Asked['tools']> }),
    };
  } catch {
    return 'The tools are not a JSON list.';
  }
}
