import { type ComponentChildren } from 'preact';
import { type Content, type Message } from '../api/client.js';
import { numberOf, visible } from '../ui/format.js';
import { Json, Text } from '../ui/text.js';
import { Time } from '../ui/time.js';

type Part = Exclude<Content, string>[number];

/** A message as it stands in the history, with what can be done about it beside it. */
export function MessageView({ message, children }: { message: Message; children?: ComponentChildren }) {
  return (
    <article class={`message ${message.role}`} aria-label={`${message.role}, version ${message.version}`}>
      <header>
        <span class={`role ${message.role}`}>{message.role}</span>
        {message.name !== undefined && <span dir="auto">{visible(message.name)}</span>}
        <span class="version">{message.version}</span>
        <Time at={message.createdAt} />
        {message.status === 'incomplete' && <span class="chip">incomplete</span>}
        {message.origin && <span class="chip">from {message.origin.sessionId}</span>}
        {message.toolCallId !== undefined && <span class="id">{visible(message.toolCallId)}</span>}
      </header>
      <Parts content={message.content} />
      {message.toolCalls?.map((call) => (
        <Call key={call.id} name={call.name} args={call.arguments} />
      ))}
      {children}
    </article>
  );
}

export const Call = ({ name, args }: { name: string; args: string }) => (
  <div class="call">
    <span class="role tool">calls</span> <b>{name}</b>
    <Text class="code" value={args} />
  </div>
);

const Parts = ({ content }: { content: Content }) =>
  typeof content === 'string' ? (
    content === '' ? null : (
      <Text value={content} />
    )
  ) : (
    <>
      {content.map((part, index) => (
        <PartView key={index} part={part} />
      ))}
    </>
  );

function PartView({ part }: { part: Part }) {
  switch (part.type) {
    case 'text':
      return <Text value={part.text} />;
    case 'refusal':
      return <Text class="refusal" value={part.text} />;
    case 'reasoning':
      return <Thoughts text={part.text ?? part.summary?.join('\n') ?? ''} />;
    case 'image':
      return <Picture url={part.url} />;
    case 'file':
    case 'audio':
      return <Address kind={part.type} url={part.url} />;
    case 'data':
      return <Json value={part.data} label={part.name} />;
  }
}

export const Thoughts = ({ text }: { text: string }) => (
  <details class="thoughts">
    <summary>Thoughts</summary>
    <Text value={text} />
  </details>
);

/** Kinds of pictures that can hold no script. */
const PICTURE = /^data:image\/(png|jpeg|gif|webp|avif);base64,[A-Za-z0-9+/=]+$/;

/** Pictures within the message are shown. Those elsewhere are not fetched: whoever has them would learn who reads this. */
function Picture({ url }: { url: string }) {
  return PICTURE.test(url) ? (
    <img class="picture" src={url} alt="Picture in the message" />
  ) : (
    <Address kind="image" url={url} />
  );
}

const Address = ({ kind, url }: { kind: string; url: string }) => (
  <div class="address">
    <span class="chip">{kind}</span>{' '}
    {url.startsWith('data:') ? (
      `within the message, ${numberOf(url.length)} characters`
    ) : (
      <Text value={url} />
    )}
  </div>
);
