import { useState } from 'preact/hooks';
import { call } from '../api/client.js';
import { announce, attempt } from '../ui/announce.js';
import { ActionDialog } from '../ui/dialog.js';
import { durationOf, numberOf, timeOf } from '../ui/format.js';
import { Notice } from '../ui/notice.js';
import { useResource } from '../ui/resource.js';
import { Table } from '../ui/table.js';
import { type OfCell } from './of-cell.js';

type Plan = NonNullable<Awaited<ReturnType<typeof call<'get', '/v1/admin/sweep'>>>['dryRun']>;

const REFRESH_MS = 5_000;
const MOST_SHOWN = 200;

/** What makes sessions leave in time: what it has done, and what it would do now. */
export function Sweeper({ cell }: OfCell) {
  const sweeper = useResource((signal) => call('get', '/v1/admin/sweep', { cell, signal }), REFRESH_MS);
  const [plan, setPlan] = useState<Plan | undefined>(undefined);
  const [isAsked, setAsked] = useState(false);
  const look = async (): Promise<void> => {
    const query = { dryRun: 'true', limit: MOST_SHOWN } as const;
    const { dryRun } = await call('get', '/v1/admin/sweep', { query, cell });
    setPlan(dryRun);
  };
  const sweep = async (): Promise<void> => {
    const { swept } = await call('post', '/v1/admin/sweep', { cell });
    announce(
      `Swept: ${Object.entries(swept)
        .map(([reason, count]) => `${count} ${reason}`)
        .join(', ')}.`,
      cell,
    );
    setPlan(undefined);
    await sweeper.load();
  };
  if (sweeper.problem) return <Notice problem={sweeper.problem} />;
  if (!sweeper.data) return null;
  const { intervalMs, lanes, totals } = sweeper.data;
  return (
    <>
      <p>
        Every {durationOf(intervalMs)}, {lanes} lanes by this node. Since its start:{' '}
        {Object.entries(totals)
          .map(([name, count]) => `${numberOf(count)} ${name}`)
          .join(', ')}
        .
      </p>
      <div class="buttons">
        <button type="button" onClick={() => void attempt(look, cell)}>
          Dry run
        </button>
        <button
          type="button"
          onClick={() => {
            setAsked(true);
          }}
        >
          Sweep now
        </button>
      </div>
      {plan && (
        <Table
          of="what a sweep would do"
          caption={
            <>
              A sweep now would do {numberOf(plan.actions.length)} things{plan.isComplete ? '' : ' and more'}
            </>
          }
          columns={['Tenant', 'Session', 'What', 'Last activity', 'Why']}
        >
          {plan.actions.map(({ tenant, sessionId, action, lastActivityAt, why }) => (
            <tr key={`${tenant} ${sessionId} ${action}`}>
              <td>{tenant}</td>
              <th scope="row">{sessionId}</th>
              <td>{action}</td>
              <td>{timeOf(lastActivityAt)}</td>
              <td>{why}</td>
            </tr>
          ))}
        </Table>
      )}
      {isAsked && (
        <ActionDialog
          title="Sweep now"
          action="Sweep"
          of={cell}
          onClose={() => {
            setAsked(false);
          }}
          run={sweep}
        >
          <p>
            Does at once, in all lanes and for all tenants{cell !== undefined && ` of the cell ${cell}`}, what
            a dry run shows.
          </p>
        </ActionDialog>
      )}
    </>
  );
}
