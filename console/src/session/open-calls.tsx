import { useState } from 'preact/hooks';
import { call } from '../api/client.js';
import { announce, attempt } from '../ui/announce.js';
import { type SessionStore } from './session-store.js';

/** Tool calls that nobody has answered yet: they can be approved, and answered in place of the tool. */
export function OpenCalls({ store }: { store: SessionStore }) {
  const open = store.state.value?.openToolCalls ?? [];
  if (open.length === 0 || store.reply.current.value) return null;
  return (
    <section class="open-calls" aria-label="Open tool calls">
      {open.map((one) => (
        <OpenCall key={one.id} store={store} id={one.id} name={one.name} isLast={open.length === 1} />
      ))}
    </section>
  );
}

function OpenCall({
  store,
  id,
  name,
  isLast,
}: {
  store: SessionStore;
  id: string;
  name: string;
  isLast: boolean;
}) {
  const [result, setResult] = useState('');
  const approval = store.state.value?.approvals.find(({ tool }) => tool === name);
  const approve = (scope: 'once' | 'session') =>
    attempt(async () => {
      await call('put', '/v1/sessions/{id}/approvals/{tool}', {
        path: { id: store.id, tool: name },
        body: { scope },
      });
      announce(`${name} is approved.`);
    });
  const revoke = () =>
    attempt(() =>
      call('delete', '/v1/sessions/{id}/approvals/{tool}', { path: { id: store.id, tool: name } }),
    );
  const answer = async (): Promise<void> => {
    const message = { role: 'tool' as const, toolCallId: id, content: result };
    // The model goes on when it has all of the results.
    if (isLast) await store.reply.ask({ message });
    else await call('post', '/v1/sessions/{id}/messages', { path: { id: store.id }, body: message });
  };
  return (
    <form
      class="open-call"
      onSubmit={(event) => {
        event.preventDefault();
        void attempt(answer);
      }}
    >
      <p>
        <b>{name}</b> waits for its result.{' '}
        {approval ? (
          <span class="chip active">approved, {approval.scope}</span>
        ) : (
          <span class="chip">not approved</span>
        )}
      </p>
      <div class="buttons">
        {approval ? (
          <button type="button" onClick={() => void revoke()}>
            Take the approval back
          </button>
        ) : (
          <>
            <button type="button" onClick={() => void approve('once')}>
              Approve once
            </button>
            <button type="button" onClick={() => void approve('session')}>
              Approve for the session
            </button>
          </>
        )}
      </div>
      <label>
        <span>Result of {name}</span>
        <textarea
          rows={2}
          dir="auto"
          value={result}
          onInput={(event) => {
            setResult(event.currentTarget.value);
          }}
        />
      </label>
      <button type="submit" class="primary">
        Answer
      </button>
    </form>
  );
}
