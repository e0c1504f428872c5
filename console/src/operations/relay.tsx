import { call } from '../api/client.js';
import { countOf, numberOf } from '../ui/format.js';
import { Notice } from '../ui/notice.js';
import { useResource } from '../ui/resource.js';
import { type OfCell } from './of-cell.js';

const REFRESH_MS = 2_000;

/** How far Kafka is behind the log, by lane. */
export function Relay({ cell }: OfCell) {
  const relay = useResource((signal) => call('get', '/v1/admin/relay', { cell, signal }), REFRESH_MS);
  if (relay.problem) return <Notice problem={relay.problem} />;
  if (!relay.data) return null;
  const { isOn, problem, behind, lanes } = relay.data;
  const most = Math.max(...lanes.map((lane) => lane.behind), 1);
  return (
    <>
      <p>
        {isOn ? (
          <span class="chip ok">on</span>
        ) : (
          <span class="chip">off: no brokers are named, events wait in the log</span>
        )}{' '}
        {countOf(behind, 'event')} behind
      </p>
      {problem !== null && <p class="refusal">{problem}</p>}
      <ul class="lanes" aria-label="Events behind, by lane">
        {lanes.map((lane) => (
          <li key={lane.lane}>
            <span>lane {lane.lane}</span>
            <meter min={0} max={most} value={lane.behind} aria-label={`Lane ${lane.lane}`} />
            <span class="figure">{numberOf(lane.behind)}</span>
          </li>
        ))}
      </ul>
    </>
  );
}
