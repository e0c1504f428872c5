import { Fragment } from 'preact';
import { credentials } from '../api/access.js';
import { call } from '../api/client.js';
import { isAbort, unreachable } from '../api/problem.js';
import { countOf, timeOf } from '../ui/format.js';
import { Notice } from '../ui/notice.js';
import { useResource } from '../ui/resource.js';
import { Table } from '../ui/table.js';
import { type OfCell } from './of-cell.js';

type Cells = Awaited<ReturnType<typeof call<'get', '/v1/admin/cells'>>>['data'];
type Ready = Awaited<ReturnType<typeof call<'get', '/health/ready'>>>;

const REFRESH_MS = 3_000;

/** A node that is not ready answers 503 with the same body, which is what one wants to see. */
async function ready(signal: AbortSignal): Promise<Ready> {
  const response = await fetch('/health/ready', { headers: credentials(), signal, cache: 'no-store' }).catch(
    (error: unknown) => {
      throw isAbort(error) ? error : unreachable();
    },
  );
  return (await response.json()) as Ready;
}

/** The node that answers, the databases, and what befell the log. */
export function Health({ cells, cell }: OfCell & { cells: Cells | undefined }) {
  const health = useResource(ready, REFRESH_MS);
  return (
    <section aria-labelledby="health">
      <h2 id="health">Health</h2>
      {health.problem && <Notice problem={health.problem} />}
      {health.data && (
        <>
          <p>
            The node that answers is <span class={`chip ${health.data.status}`}>{health.data.status}</span>
          </p>
          <ul class="checks">
            {Object.entries(health.data.checks).map(([name, check]) => (
              <li key={name}>
                <span class={`chip ${check.status}`}>{check.status}</span> {name}
                {check.detail !== undefined && <span class="what"> {check.detail}</span>}
              </li>
            ))}
          </ul>
        </>
      )}
      {cells && (
        <Table of="cells" columns={['Cell', 'Status', { figure: 'Tenants' }, { figure: 'Weight' }]}>
          {cells.map(({ name, status, tenants, weight }) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              <td>
                <span class={`chip ${status}`}>{status}</span>
              </td>
              <td class="figure">{tenants}</td>
              <td class="figure">{weight}</td>
            </tr>
          ))}
        </Table>
      )}
      {cells && (
        <Fragment key={cell}>
          <Nodes cell={cell} />
          <Generations cell={cell} />
        </Fragment>
      )}
    </section>
  );
}

/** What a kind of work is called by people: `projection/sessions_v7` is the read model `sessions`. */
const workOf = (lease: string): string => lease.replace(/^projection\/(.*)_v\d+$/, '$1');

function Nodes({ cell }: OfCell) {
  const found = useResource((signal) => call('get', '/v1/admin/nodes', { cell, signal }), REFRESH_MS);
  if (!found.data) return found.problem && <Notice problem={found.problem} />;
  return (
    <Table of="nodes" columns={['Node', 'Status', 'Version', 'Since', 'Seen', 'Lanes by work']}>
      {found.data.data.map(({ id, host, pid, status, version, startedAt, seenAt, isAnswering, lanes }) => (
        <tr key={id}>
          <th scope="row" title={id}>
            {host}, process {pid}
            {isAnswering && <span class="what"> this one</span>}
          </th>
          <td>
            <span class={`chip ${status === 'ok' ? 'ok' : 'unavailable'}`}>{status}</span>
          </td>
          <td>{version}</td>
          <td>{timeOf(startedAt)}</td>
          <td>{seenAt === null ? 'not yet' : timeOf(seenAt)}</td>
          <td>
            {Object.entries(lanes)
              .map(([work, some]) => `${workOf(work)} ${some.length}`)
              .join(', ')}
          </td>
        </tr>
      ))}
    </Table>
  );
}

function Generations({ cell }: OfCell) {
  const found = useResource((signal) => call('get', '/v1/admin/log/generations', { cell, signal }));
  const all = found.data?.data ?? [];
  if (all.length < 2) return null;
  return (
    <p>
      The log was set back {countOf(all.length - 1, 'time')}, by a failover or restore, the last time at{' '}
      {timeOf(all.at(-1)?.since ?? '')}.
    </p>
  );
}
