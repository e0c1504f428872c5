import { useSignal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { call, type Generation } from '../api/client.js';
import { asProblem, isAbort, type Problem } from '../api/problem.js';
import { timeOf } from '../ui/format.js';
import { Notice } from '../ui/notice.js';
import { Json, Text } from '../ui/text.js';
import { type SessionStore } from './session-store.js';

/** What the model was given, to the letter: for the reply that was chosen, else for the last one of the moment. */
export function Prompt({ store, generationId }: { store: SessionStore; generationId: string | undefined }) {
  const generation = useSignal<Generation | undefined>(undefined);
  const problem = useSignal<Problem | undefined>(undefined);
  const last = store.history.value.messages.value.findLast((message) => message.generationId !== undefined);
  const wanted = generationId ?? store.state.value?.generation?.id ?? last?.generationId;
  useEffect(() => {
    if (wanted === undefined) return;
    const ended = new AbortController();
    call('get', '/v1/sessions/{id}/generations/{generationId}', {
      path: { id: store.id, generationId: wanted },
      signal: ended.signal,
    }).then(
      (found) => {
        generation.value = found;
        problem.value = undefined;
      },
      (error: unknown) => {
        if (!isAbort(error)) problem.value = asProblem(error);
      },
    );
    return () => {
      ended.abort();
    };
  }, [wanted]);
  if (wanted === undefined) return <p class="empty">No model was asked up to this moment.</p>;
  if (problem.value) return <Notice problem={problem.value} />;
  if (!generation.value) return null;
  const { model, status, startedAt, prompt, error } = generation.value;
  return (
    <div class="scrolls" role="region" aria-label="Prompt" tabIndex={0}>
      <p>
        <b>{model}</b> · {status} · {timeOf(startedAt)} <span class="id">{wanted}</span>
      </p>
      {error !== null && <Text class="refusal" value={error} />}
      {prompt.instructions !== undefined && (
        <>
          <h2>Instructions</h2>
          <Text value={prompt.instructions} />
        </>
      )}
      {prompt.tools && (
        <>
          <h2>Tools</h2>
          <Json value={prompt.tools} label="Tools" />
        </>
      )}
      {prompt.parameters && (
        <>
          <h2>Parameters</h2>
          <Json value={prompt.parameters} label="Parameters" />
        </>
      )}
      <h2>Messages, {prompt.messages.length}</h2>
      <Json value={prompt.messages} label="Messages of the prompt" />
    </div>
  );
}
