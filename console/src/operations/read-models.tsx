import { useSignal } from '@preact/signals';
import { call } from '../api/client.js';
import { address } from '../router.js';
import { announce, attempt } from '../ui/announce.js';
import { numberOf, timeOf } from '../ui/format.js';
import { Notice } from '../ui/notice.js';
import { useResource } from '../ui/resource.js';
import { Table } from '../ui/table.js';
import { type OfCell } from './of-cell.js';

type Verification = Awaited<ReturnType<typeof call<'post', '/v1/admin/projections/{name}/verify'>>>;

const REFRESH_MS = 1_000;

/** How far the read models are, with what mends them; and the sessions that they could not take in. */
export function ReadModels({ cell }: OfCell) {
  const models = useResource((signal) => call('get', '/v1/admin/projections', { cell, signal }), REFRESH_MS);
  const verified = useSignal<ReadonlyMap<string, Verification | 'running'>>(new Map());
  const note = (name: string, result: Verification | 'running' | undefined): void => {
    const next = new Map(verified.value);
    if (result) next.set(name, result);
    else next.delete(name);
    verified.value = next;
  };
  const verify = async (name: string): Promise<void> => {
    note(name, 'running');
    try {
      note(name, await call('post', '/v1/admin/projections/{name}/verify', { path: { name }, cell }));
    } catch (error) {
      note(name, undefined);
      throw error;
    }
  };
  const rebuild = async (name: string): Promise<void> => {
    await call('post', '/v1/admin/projections/{name}/rebuild', { path: { name }, cell });
    announce(`${name} is built anew; it goes on to answer meanwhile.`, cell);
    await models.load();
  };
  if (models.problem) return <Notice problem={models.problem} retry={() => void models.load()} />;
  return (
    <>
      <Table
        of="read models"
        columns={[
          'Name',
          'Status',
          { figure: 'Events behind' },
          { figure: 'Parked' },
          'Rebuild',
          'Verification',
          'Actions',
        ]}
      >
        {models.data?.data.map(({ name, version, status, behind, parked, rebuild: running }) => {
          const result = verified.value.get(name);
          return (
            <tr key={name}>
              <th scope="row">
                {name} {version}
              </th>
              <td>
                <span class={`chip ${status}`}>{status}</span>
              </td>
              <td class="figure">{numberOf(behind)}</td>
              <td class="figure">{numberOf(parked)}</td>
              <td>
                {running && (
                  <progress
                    value={running.processed}
                    max={Math.max(running.total, 1)}
                    aria-label={`Rebuild of ${name}`}
                  />
                )}
              </td>
              <td>
                {result === 'running'
                  ? 'running …'
                  : result &&
                    (result.ok
                      ? `equal, ${numberOf(result.rows)} rows`
                      : `differs, first at ${result.firstDifference?.sessionId ?? 'an unknown session'}`)}
              </td>
              <td>
                <div class="buttons">
                  <button
                    type="button"
                    disabled={result === 'running'}
                    aria-label={`Verify ${name}`}
                    onClick={() => void attempt(() => verify(name), cell)}
                  >
                    Verify
                  </button>
                  <button
                    type="button"
                    disabled={running !== null}
                    aria-label={`Rebuild ${name}`}
                    onClick={() => void attempt(() => rebuild(name), cell)}
                  >
                    Rebuild
                  </button>
                </div>
              </td>
            </tr>
          );
        })}
      </Table>
      <Parked cell={cell} />
    </>
  );
}

const PARKED_MS = 3_000;

function Parked({ cell }: OfCell) {
  const parked = useResource((signal) => call('get', '/v1/admin/parked', { cell, signal }), PARKED_MS);
  if (parked.problem) return <Notice problem={parked.problem} />;
  if (!parked.data) return null;
  if (parked.data.data.length === 0) return <p>No session is parked.</p>;
  const resume = (
    path: '/v1/admin/parked/retry' | '/v1/admin/parked/skip',
    body: { projection: string; tenant: string; sessionId: string },
  ) =>
    attempt(async () => {
      const { parked: left } = await call('post', path, { body, cell });
      announce(left ? `${body.sessionId} is parked still.` : `${body.sessionId} is taken in.`, cell);
      await parked.load();
    }, cell);
  return (
    <Table
      of="parked sessions"
      caption="Parked sessions"
      columns={['Read model', 'Tenant', 'Session', 'At version', 'Since', 'Why', 'Actions']}
    >
      {parked.data.data.map(({ projection, tenant, sessionId, version, error, parkedAt }) => (
        <tr key={`${projection} ${tenant} ${sessionId}`}>
          <th scope="row">{projection}</th>
          <td>{tenant}</td>
          <td>
            <a href={address(['sessions', sessionId])}>{sessionId}</a>
          </td>
          <td class="figure">{numberOf(version)}</td>
          <td>{timeOf(parkedAt)}</td>
          <td>{error}</td>
          <td>
            <div class="buttons">
              <button
                type="button"
                onClick={() => void resume('/v1/admin/parked/retry', { projection, tenant, sessionId })}
              >
                Retry
              </button>
              <button
                type="button"
                onClick={() => void resume('/v1/admin/parked/skip', { projection, tenant, sessionId })}
              >
                Skip the event
              </button>
            </div>
          </td>
        </tr>
      ))}
    </Table>
  );
}
