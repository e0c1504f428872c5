import { useSignal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { call, type Diff } from '../api/client.js';
import { asProblem, isAbort, type Problem } from '../api/problem.js';
import { numberOf } from '../ui/format.js';
import { Notice } from '../ui/notice.js';
import { MessageView } from './message.js';
import { type SessionStore } from './session-store.js';

/** What changed between two moments. */
export function Changes({ store, from }: { store: SessionStore; from: number | undefined }) {
  const diff = useSignal<Diff | undefined>(undefined);
  const problem = useSignal<Problem | undefined>(undefined);
  const shown = store.shown.value;
  const incarnation = store.trail.at(shown)?.incarnation;
  useEffect(() => {
    if (from === undefined || shown === 0) return;
    const ended = new AbortController();
    call('get', '/v1/sessions/{id}/diff', {
      path: { id: store.id },
      query: {
        from: Math.min(from, shown),
        to: Math.max(from, shown),
        ...(incarnation !== undefined && { incarnation }),
      },
      signal: ended.signal,
    }).then(
      (found) => {
        diff.value = found;
        problem.value = undefined;
      },
      (error: unknown) => {
        if (!isAbort(error)) problem.value = asProblem(error);
      },
    );
    return () => {
      ended.abort();
    };
  }, [from, shown, incarnation]);
  if (from === undefined)
    return (
      <p class="empty">Choose a moment, press “Compare from here”, and move the slider to another one.</p>
    );
  if (problem.value) return <Notice problem={problem.value} />;
  const found = diff.value;
  if (!found) return null;
  const fields = (['status', 'title', 'legalHold', 'metadata'] as const).flatMap((name) => {
    const change = found[name];
    return change ? [{ name, ...change }] : [];
  });
  const { added, removed } = found.messages;
  return (
    <div class="scrolls" role="region" aria-label="What changed" tabIndex={0}>
      <p>
        From version {numberOf(found.from)} to {numberOf(found.to)}: {numberOf(found.usage.inputTokens)}{' '}
        tokens in, {numberOf(found.usage.outputTokens)} out
      </p>
      <ul>
        {Object.entries(found.events).map(([type, count]) => (
          <li key={type}>
            {numberOf(count)} × {type}
          </li>
        ))}
      </ul>
      {fields.map(({ name, before, after }) => (
        <p key={name} dir="auto">
          <b>{name}</b>: <del>{JSON.stringify(before)}</del> <ins>{JSON.stringify(after)}</ins>
        </p>
      ))}
      {found.approvals.added.map(({ tool }) => (
        <p key={tool}>
          <ins>approved: {tool}</ins>
        </p>
      ))}
      {found.approvals.removed.map(({ tool }) => (
        <p key={tool}>
          <del>no longer approved: {tool}</del>
        </p>
      ))}
      <h2>Messages that came, {numberOf(added.count)}</h2>
      {added.data.map((message) => (
        <MessageView key={message.id} message={message} />
      ))}
      <h2>Messages that left, {numberOf(removed.count)}</h2>
      {removed.data.map((message) => (
        <MessageView key={message.id} message={message} />
      ))}
    </div>
  );
}
