import { type Fields, fieldsOf, listOf } from '../domain/loose-json.js';
import { SESSION_ID } from '../domain/session.events.js';
import { derivedId } from '../sessions/ids.js';
import { callOf, contentOf, fromOpenAi, roleOf } from './openai-messages.js';

/** Forms in which other programs write conversations. */
export type HistoryForm = 'openai' | 'langchain' | 'chatgpt';

/** A conversation of another program: the messages in the form of a request, not checked yet. */
export interface History {
  readonly sessionId: string;
  readonly title?: string | undefined;
  /** The history of which this one is a branch, and how many of its messages both share. */
  readonly forkedFrom?: { readonly sessionId: string; readonly messages: number };
  readonly messages: readonly { readonly message: Fields; readonly time?: number | undefined }[];
}

/**
 * The conversations in a document. Those without an id of their own get one that follows from what they say, so that the
 * same document is the same sessions whenever it is read.
 *
 * @throws Error when it is not of this form; the message is the end of a sentence
 */
export function historiesIn(document: unknown, form: HistoryForm, tenant: string): History[] {
  switch (form) {
    case 'openai':
      return [openAiHistory(document, tenant)];
    case 'langchain':
      return [langChainHistory(document, tenant)];
    case 'chatgpt':
      return (Array.isArray(document) ? (document as unknown[]) : [document]).flatMap((one) =>
        chatGptHistories(fieldsOf(one)),
      );
  }
}

/** A list of messages, or an object that has it as `messages`; also our own answer, which has it as `data`. */
function openAiHistory(document: unknown, tenant: string): History {
  const fields = fieldsOf(document);
  const messages = Array.isArray(document) ? document : (fields['messages'] ?? fields['data']);
  if (!Array.isArray(messages) || messages.length === 0)
    throw new Error('it has no list of messages: neither is it one, nor has it one as `messages`');
  return {
    sessionId: idOf(fields, document, tenant),
    title: titleOf(fields['title']),
    messages: (messages as unknown[]).map(fieldsOf).map((one) => ({
      message: fields['data'] === messages ? ours(one) : fromOpenAi(one),
      time: timeOf(one),
    })),
  };
}

const ours = ({ id, role, content, name, toolCalls, toolCallId, extensions }: Fields): Fields =>
  Object.fromEntries(
    Object.entries({ messageId: id, role, content, name, toolCalls, toolCallId, extensions }).filter(
      ([, value]) => value !== undefined,
    ),
  );

/** What `messages_to_dict`, `dumps` and the stores of LangChain write. */
function langChainHistory(document: unknown, tenant: string): History {
  const fields = fieldsOf(document);
  const messages = Array.isArray(document) ? document : fields['messages'];
  if (!Array.isArray(messages) || messages.length === 0) throw new Error('it has no list of messages');
  return {
    sessionId: idOf(fields, document, tenant),
    title: titleOf(fields['title']),
    messages: (messages as unknown[]).map(fieldsOf).map((one) => {
      const data = fieldsOf(one['kwargs'] ?? one['data'] ?? one);
      // A serialised message has the path of its class, such as [..., "HumanMessage"].
      const named = one['type'] === 'constructor' ? listOf(one['id']).at(-1) : one['type'];
      const kind = (typeof named === 'string' ? named : '').replace(/Message(?:Chunk)?$/, '').toLowerCase();
      const calls = listOf(data['tool_calls'] ?? fieldsOf(data['additional_kwargs'])['tool_calls']);
      const toolCallId = data['tool_call_id'];
      return {
        message: {
          role: kind === 'chat' ? roleOf(data['role']) : roleOf(kind),
          content: contentOf(data['content']),
          ...(calls.length > 0 && { toolCalls: calls.map(fieldsOf).map(callOf) }),
          ...(typeof toolCallId === 'string' && { toolCallId }),
          ...(typeof data['name'] === 'string' && data['name'] !== '' && { name: data['name'] }),
        },
        time: timeOf(data),
      };
    }),
  };
}

interface Node {
  readonly parent: string | undefined;
  readonly children: readonly string[];
  readonly message: Fields | undefined;
}

/**
 * A conversation of a ChatGPT export is a tree: each edit and each reply that was asked for again begins a branch. The branch
 * that was chosen last is the session, the others are forks of it.
 */
function chatGptHistories(conversation: Fields): History[] {
  const { mapping, current_node: current, title } = conversation;
  const nodes = new Map(
    Object.entries(fieldsOf(mapping)).map(([id, node]): [string, Node] => {
      const { parent, children, message } = fieldsOf(node);
      return [
        id,
        {
          parent: typeof parent === 'string' ? parent : undefined,
          children: listOf(children).filter((one) => typeof one === 'string'),
          message: message === null || message === undefined ? undefined : fieldsOf(message),
        },
      ];
    }),
  );
  const id = conversation['conversation_id'] ?? conversation['id'];
  if (typeof id !== 'string' || !SESSION_ID.test(id) || nodes.size === 0)
    throw new Error('it is no conversation of a ChatGPT export: `id` or `mapping` is missing');
  const pathTo = (leaf: string): string[] => {
    const path = new Set<string>();
    for (let at: string | undefined = leaf; at !== undefined && !path.has(at); at = nodes.get(at)?.parent)
      path.add(at);
    return [...path].reverse();
  };
  const leaves = [...nodes].filter(([, { children }]) => children.length === 0).map(([leaf]) => leaf);
  const chosen = typeof current === 'string' && nodes.has(current) ? current : leaves.at(-1);
  if (chosen === undefined) return [];
  const said = (path: readonly string[]) => path.flatMap((node) => chatGptMessage(nodes.get(node)?.message));
  const main = pathTo(chosen);
  const shared = { title: titleOf(title) };
  const histories: History[] = [{ sessionId: id, ...shared, messages: said(main) }];
  for (const leaf of leaves.filter((one) => !main.includes(one))) {
    const path = pathTo(leaf);
    const common = path.filter((node) => main.includes(node));
    const messages = said(path);
    if (messages.length === 0) continue;
    histories.push({
      sessionId: `${id.slice(0, 110)}.${histories.length}`,
      ...shared,
      forkedFrom: { sessionId: id, messages: said(common).length },
      messages,
    });
  }
  return histories.filter(({ messages }) => messages.length > 0);
}

function chatGptMessage(message: Fields | undefined): History['messages'] {
  if (!message) return [];
  const { role, name } = fieldsOf(message['author']);
  const { parts, text, result } = fieldsOf(message['content']);
  const content = contentOf(Array.isArray(parts) ? parts : (text ?? result ?? ''));
  const isEmpty =
    content === '' ||
    (Array.isArray(content) && content.every((part) => part.type === 'text' && part.text === ''));
  if (isEmpty || typeof role !== 'string') return [];
  const plain =
    Array.isArray(content) && content.length === 1 && content[0]?.type === 'text' ? content[0].text : content;
  // What its own tools answered names no call, so it can only be told.
  const isTool = role === 'tool';
  const told = `[${typeof name === 'string' ? name : 'tool'}] `;
  return [
    {
      message: {
        role: isTool ? 'system' : roleOf(role),
        content: !isTool
          ? plain
          : typeof plain === 'string'
            ? told + plain
            : [{ type: 'text', text: told }, ...plain],
      },
      time: timeOf(message),
    },
  ];
}

const titleOf = (title: unknown): string | undefined =>
  typeof title === 'string' && title.trim() !== '' ? title.trim().slice(0, 300).toWellFormed() : undefined;

function idOf(fields: Fields, document: unknown, tenant: string): string {
  for (const id of [fields['sessionId'], fields['session_id'], fields['id']])
    if (typeof id === 'string' && SESSION_ID.test(id)) return id;
  return derivedId('sess', tenant, 'import', JSON.stringify(document));
}

/** Numbers below this are seconds, as of the year 5138 at the latest. */
const SECONDS_BELOW = 100_000_000_000;

/** When a message was written, in milliseconds; undefined when it does not say. */
export function timeOf(message: Fields): number | undefined {
  for (const name of ['createdAt', 'created_at', 'create_time', 'created', 'timestamp']) {
    const value = message[name];
    if (typeof value === 'number' && Number.isFinite(value) && value > 0)
      return Math.round(value < SECONDS_BELOW ? value * 1000 : value);
    if (typeof value === 'string' && !Number.isNaN(Date.parse(value))) return Date.parse(value);
  }
  return undefined;
}
