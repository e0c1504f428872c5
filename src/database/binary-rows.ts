import { type Pool, Query } from 'pg';
import { available } from './connection.js';

/** What `COPY` sends before the first row: a signature, flags, and the length of an extension that no version has. */
const HEADER = 'PGCOPY\n\xff\r\n\0'.length + 4 + 4;
const FIRST_BYTES = 64 * 1024;

/** The driver calls `handleCopyData` with each piece of what `COPY` sends; its types do not know of it. */
class CopyOut extends Query {
  private bytes = Buffer.allocUnsafe(FIRST_BYTES);
  private length = 0;

  handleCopyData({ chunk }: { readonly chunk: Buffer }): void {
    const { bytes, length } = this;
    if (length + chunk.length > bytes.length) {
      this.bytes = Buffer.allocUnsafe(2 * (length + chunk.length));
      bytes.copy(this.bytes, 0, 0, length);
    }
    // The driver uses the memory of the piece again.
    this.length += chunk.copy(this.bytes, length);
  }

  get sent(): Buffer {
    return this.bytes.subarray(0, this.length);
  }
}

/** The fields of a row in the order of its columns: each call takes the next one, in the form of its type. */
export class BinaryFields {
  private at = HEADER;

  constructor(private readonly bytes: Buffer) {}

  /** Goes on to the next row; false when there is none. */
  next(): boolean {
    const fields = this.bytes.readInt16BE(this.at);
    this.at += 2;
    return fields >= 0;
  }

  text(): string {
    return this.textOrNull() ?? '';
  }

  textOrNull(): string | null {
    const from = this.begin();
    return from < 0 ? null : this.bytes.toString('utf8', from, this.at);
  }

  /** Of an `integer`, which is not null. */
  integer(): number {
    return this.bytes.readInt32BE(this.begin());
  }

  /** Of a `bytea`. The memory is that of all rows. */
  bytesOrNull(): Buffer | null {
    const from = this.begin();
    return from < 0 ? null : this.bytes.subarray(from, this.at);
  }

  /** Goes behind a field, and returns where it begins; -1 for null. */
  private begin(): number {
    const length = this.bytes.readInt32BE(this.at);
    const from = this.at + 4;
    this.at = from + Math.max(length, 0);
    return length < 0 ? -1 : from;
  }
}

/**
 * The rows of a query, in binary form: the driver reads all else as text, in which bytes are written digit by digit.
 *
 * @param select without parameters, because `COPY` takes none
 * @param read makes a row of its fields
 * @throws DatabaseUnavailable when the connection is lost; every other error stays what it is.
 */
export async function binaryRows<Row>(
  pool: Pool,
  select: string,
  read: (fields: BinaryFields) => Row,
): Promise<Row[]> {
  const copy = new CopyOut(`copy (${select}) to stdout (format binary)`);
  await available(() => pool.query(copy) as unknown as Promise<unknown>);
  const fields = new BinaryFields(copy.sent);
  const rows: Row[] = [];
  while (fields.next()) rows.push(read(fields));
  return rows;
}
