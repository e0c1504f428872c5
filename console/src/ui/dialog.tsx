import { type ComponentChildren } from 'preact';
import { useEffect, useId, useRef, useState } from 'preact/hooks';
import { attempt } from './announce.js';

/**
 * A dialog that is open as long as it is rendered. The browser keeps the focus inside, closes it with Esc, and gives the
 * focus back to what had it before.
 */
export function Dialog(props: { title: string; onClose: () => void; children: ComponentChildren }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const title = useId();
  const onClose = useRef(props.onClose);
  onClose.current = props.onClose;
  useEffect(() => {
    const element = dialog.current;
    const before = document.activeElement as HTMLElement | null;
    const tell = (): void => {
      onClose.current();
    };
    element?.addEventListener('close', tell);
    element?.showModal();
    return () => {
      // The browser tells of it later, when the next dialog may be open already, and would be closed instead.
      element?.removeEventListener('close', tell);
      element?.close();
      // The browser has done so already, unless what had the focus was shown again meanwhile; somebody may be elsewhere by now.
      const { activeElement } = document;
      if (!activeElement || activeElement === document.body) before?.focus();
    };
  }, []);
  return (
    <dialog ref={dialog} aria-labelledby={title}>
      <h2 id={title}>{props.title}</h2>
      {props.children}
    </dialog>
  );
}

/** A dialog with a form that does one thing. It stays open when that fails. */
export function ActionDialog(props: {
  title: string;
  action: string;
  isDangerous?: boolean;
  /** Must be typed before the action can be taken. */
  confirm?: string;
  /** What it is done to, for what went wrong: the dialog may be closed by then. */
  of?: string | undefined;
  onClose: () => void;
  run: (form: FormData) => Promise<unknown>;
  children?: ComponentChildren;
}) {
  const [isBusy, setBusy] = useState(false);
  const [typed, setTyped] = useState('');
  const isConfirmed = props.confirm === undefined || typed === props.confirm;
  const submit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    if (!isConfirmed || isBusy) return;
    const form = new FormData(event.currentTarget as HTMLFormElement);
    setBusy(true);
    const isDone = await attempt(() => props.run(form), props.of);
    setBusy(false);
    if (isDone) props.onClose();
  };
  return (
    <Dialog title={props.title} onClose={props.onClose}>
      <form onSubmit={(event) => void submit(event)}>
        {props.children}
        {props.confirm !== undefined && (
          <label>
            <span>
              Type <b class="id">{props.confirm}</b> to confirm
            </span>
            <input
              autocomplete="off"
              value={typed}
              onInput={(event) => {
                setTyped(event.currentTarget.value);
              }}
            />
          </label>
        )}
        <div class="buttons">
          <button type="button" onClick={props.onClose}>
            Cancel
          </button>
          <button
            type="submit"
            class={props.isDangerous ? 'danger' : 'primary'}
            disabled={!isConfirmed || isBusy}
          >
            {props.action}
          </button>
        </div>
      </form>
    </Dialog>
  );
}

/** What was typed into a field of a form; undefined when that is nothing. */
export function textIn(form: FormData, name: string): string | undefined {
  const value = form.get(name);
  return typeof value === 'string' && value !== '' ? value : undefined;
}
