import { call } from '../api/client.js';
import { useResource } from '../ui/resource.js';
import { announce, attempt } from '../ui/announce.js';
import { timeOf } from '../ui/format.js';
import { type SessionStore } from './session-store.js';

const WAITS = {
  'legal-hold': ', once the legal hold is lifted',
  deletion: ', once the session is deleted',
} as const;

/** When a session is going to be erased, and that it can be called off until then. */
export function PlannedErasures({ store }: { store: SessionStore }) {
  const { id } = store;
  // Asked again when something has happened to the session. Of one that was never erased, nor is to be, it is 404.
  const { data, problem, load } = useResource(
    (signal) => call('get', '/v1/sessions/{id}/erasure', { path: { id }, signal }),
    0,
    `${id} ${String(store.trail.end.value)}`,
  );
  const scheduled = problem ? [] : (data?.scheduled ?? []);
  if (scheduled.length === 0) return null;
  return (
    <div class="planned" role="status">
      {scheduled.map(({ at, eraseAfter, reason, waitsFor }) => (
        <p key={at}>
          To be erased on <time dateTime={at}>{timeOf(at)}</time>
          {waitsFor && WAITS[waitsFor]}
          {eraseAfter === undefined ? '' : ', by the retention of the tenant'}
          {reason === undefined ? '' : ` (${reason})`}.
        </p>
      ))}
      <button
        type="button"
        onClick={() =>
          void attempt(async () => {
            await call('delete', '/v1/sessions/{id}/erasure', { path: { id } });
            announce('The erasure is called off.');
            await load();
          })
        }
      >
        Call off
      </button>
    </div>
  );
}
