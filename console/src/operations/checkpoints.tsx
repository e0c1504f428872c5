import { useState } from 'preact/hooks';
import { call } from '../api/client.js';
import { attempt } from '../ui/announce.js';
import { Dialog } from '../ui/dialog.js';
import { download } from '../ui/download.js';
import { countOf, numberOf, timeOf } from '../ui/format.js';
import { Notice } from '../ui/notice.js';
import { Json } from '../ui/text.js';
import { Time } from '../ui/time.js';
import { useResource } from '../ui/resource.js';
import { Table } from '../ui/table.js';
import { type OfCell } from './of-cell.js';

const REFRESH_MS = 5_000;

type Proof = Awaited<ReturnType<typeof call<'get', '/v1/checkpoints/{lane}/inclusion'>>>;

/** What the notary has signed of the log, by lane, and the proof of any event of it. */
export function Checkpoints({ cell }: OfCell) {
  const checkpoints = useResource((signal) => call('get', '/v1/checkpoints', { cell, signal }), REFRESH_MS);
  const [proof, setProof] = useState<Proof | undefined>(undefined);
  if (checkpoints.problem) return <Notice problem={checkpoints.problem} />;
  if (!checkpoints.data) return null;
  const { keys, behind, data } = checkpoints.data;
  const prove = async (lane: number, position: number): Promise<void> => {
    await attempt(async () => {
      setProof(
        await call('get', '/v1/checkpoints/{lane}/inclusion', { path: { lane }, query: { position }, cell }),
      );
    }, cell);
  };
  return (
    <>
      <p>
        {keys.length === 0 ? (
          <span class="chip">nothing is signed: there is no master key</span>
        ) : (
          <span class="chip ok">signed by {keys.find((key) => key.retiredAt === null)?.id}</span>
        )}{' '}
        {countOf(behind, 'event')} behind
      </p>
      <div class="buttons">
        <button
          type="button"
          disabled={keys.length === 0}
          onClick={() => {
            download('notary.pub', 'text/plain', keys.map((key) => `${key.verifier}\n`).join(''));
          }}
        >
          Public keys
        </button>
        <button
          type="button"
          disabled={data.length === 0}
          onClick={() => {
            download('checkpoints.txt', 'text/plain', data.map(({ note }) => note).join('\n'));
          }}
        >
          Checkpoints
        </button>
      </div>
      {data.length > 0 && (
        <Table of="checkpoints" columns={['Lane', 'Events', 'Signed', 'Proof of an event']}>
          {data.map(({ lane, size, time }) => (
            <tr key={lane}>
              <th scope="row">{lane}</th>
              <td class="figure">{numberOf(size)}</td>
              <td>
                <Time at={time} />
              </td>
              <td>
                <form
                  class="buttons"
                  onSubmit={(event) => {
                    event.preventDefault();
                    const position = new FormData(event.currentTarget).get('position');
                    void prove(lane, Number(position));
                  }}
                >
                  <input
                    name="position"
                    type="number"
                    min={1}
                    max={size}
                    required
                    aria-label={`Position in lane ${lane}`}
                  />
                  <button type="submit" aria-label={`Prove an event of lane ${lane}`}>
                    Prove
                  </button>
                </form>
              </td>
            </tr>
          ))}
        </Table>
      )}
      {proof && (
        <Dialog
          title={`Position ${numberOf(proof.position)} of lane ${proof.lane}`}
          onClose={() => {
            setProof(undefined);
          }}
        >
          <p>
            The log held this event when the checkpoint was signed, at {timeOf(proof.checkpoint.time)}:{' '}
            {proof.path.length} hashes lead from it to what was signed.
          </p>
          <Json value={JSON.parse(proof.leaf) as unknown} label="Leaf of the tree" />
          <div class="buttons">
            <button
              type="button"
              class="primary"
              onClick={() => {
                download(`${proof.lane}-${proof.position}.tlog-proof`, 'text/plain', proof.tlogProof);
              }}
            >
              Keep the proof
            </button>
          </div>
        </Dialog>
      )}
    </>
  );
}
